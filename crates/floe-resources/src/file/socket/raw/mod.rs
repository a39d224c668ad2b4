//! Raw sockets: of the internet (raw(7)), of ICMP echoes (icmp(7)), of network devices (packet(7)), and of netlink(7). What
//! waits in them can be put back only where it is an echo: the kernel would act on the rest once more, or can't be made to
//! send it again.

mod echo;
mod find;

pub(super) use find::is_raw;

use super::{
    address::is_of_a_link,
    datagram::Datagram,
    devices::{Devices, find_devices},
    family,
    options::{self, SocketOption},
    supply::new_alone,
    system,
};
use crate::file::{
    ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, Holders, OpenContext, decode, set_status,
};
use floe_image::{codec, record::OpenFileRecord};
use floe_sys::{
    message,
    socket::{set_option, set_program},
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The kind.
pub struct Raw;

const NAME: &str = "raw-socket";

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    /// AF_INET, AF_INET6, AF_PACKET or AF_NETLINK.
    family: i32,
    /// SOCK_RAW or SOCK_DGRAM.
    kind: i32,
    /// As socket(2) takes it.
    protocol: i32,
    /// The bytes of its own address, where it is bound.
    local: Option<ByteBuf>,
    /// The same of where it sends to.
    remote: Option<ByteBuf>,
    /// Echoes that wait.
    packets: Vec<Datagram>,
    options: Vec<SocketOption>,
    /// Network devices that its address and options name by their numbers: number and name.
    devices: Vec<(u32, String)>,
}

/// Bytes of struct sockaddr_storage.
const LONGEST_ADDRESS: usize = 128;
/// ETH_ALEN and more: linux/if_packet.h.
const DEVICE_OF_ADDRESS: usize = 4;

impl Body {
    fn is_echo(&self) -> bool {
        self.kind == libc::SOCK_DGRAM && echo::protocol(self.family) == Some(self.protocol)
    }

    fn is_possible(&self) -> bool {
        let is_raw = self.kind == libc::SOCK_RAW;
        let is_known = match self.family {
            libc::AF_INET | libc::AF_INET6 => is_raw || self.is_echo(),
            libc::AF_PACKET | libc::AF_NETLINK => is_raw || self.kind == libc::SOCK_DGRAM,
            _ => false,
        };
        let of_family = |address: &ByteBuf| {
            address.len() <= LONGEST_ADDRESS && address.starts_with(&(self.family as u16).to_ne_bytes())
        };
        is_known
            && [&self.local, &self.remote].into_iter().flatten().all(of_family)
            && (self.packets.is_empty() || self.is_echo())
            && self.packets.iter().all(echo::is_possible)
            && options::are_possible(&self.options)
    }

    /// Whether its addresses mean something only together with a network device.
    fn is_of_a_link(&self) -> bool {
        // struct sockaddr_in6: family, port, flow information, address.
        let six = |address: &ByteBuf| Some(<[u8; 16]>::try_from(address.get(8..24)?).ok()?.into());
        let addresses = [&self.local, &self.remote].into_iter().flatten();
        self.family == libc::AF_INET6 && addresses.filter_map(six).any(is_of_a_link)
    }

    /// Has it name devices by the numbers that they have here.
    fn renumber(&mut self, devices: &Devices) {
        self.options.iter_mut().for_each(|option| option.renumber(devices));
        if let (Some(before), Some(place)) = (self.device(), &mut self.local) {
            let place = &mut place[DEVICE_OF_ADDRESS..DEVICE_OF_ADDRESS + 4];
            place.copy_from_slice(&devices.now(before).to_ne_bytes());
        }
    }

    /// The number of the device that a packet socket is bound to.
    fn device(&self) -> Option<u32> {
        let place = self.local.as_ref().filter(|_| self.family == libc::AF_PACKET)?;
        let bytes = place.get(DEVICE_OF_ADDRESS..DEVICE_OF_ADDRESS + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?)).filter(|number| *number != 0)
    }
}

impl FileKind for Raw {
    fn name(&self) -> &'static str {
        NAME
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        match family(file) {
            Some(libc::AF_PACKET | libc::AF_NETLINK) => true,
            Some(libc::AF_INET | libc::AF_INET6) => is_raw(file.as_fd()),
            _ => false,
        }
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        match find::body(file, context)? {
            Ok(body) => Ok(Some(codec::encode(&body)?)),
            Err((reason, advice)) => {
                context.refusals.add(Some(&file.subject), file.title(), reason, advice);
                Ok(None)
            }
        }
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let mut body = possible(record)?;
        body.renumber(&find_devices(record.id, &body.devices, context)?);
        let socket = make(record.id, &body, context)?;
        let wrap = |action| move |source: Errno| system(action, record.id, source.into());
        // What is put back elsewhere is not for it. It is the last to be let in.
        if !body.is_echo() {
            take_nothing(socket.as_fd()).map_err(wrap("close its ears"))?;
        }
        options::set_early(socket.as_fd(), &body.options)
            .map_err(|error| system("set the options of", record.id, error.into()))?;
        if let Some(local) = &body.local {
            message::bind(socket.as_fd(), local).map_err(wrap("bind (is its number taken?)"))?;
        }
        if let Some(remote) = &body.remote {
            message::connect(socket.as_fd(), remote).map_err(wrap("connect"))?;
        }
        echo::put_back(record.id, socket.as_fd(), &body.packets, context)?;
        set_status(socket.as_fd(), record)?;
        Ok(socket)
    }

    fn complete(&self, record: &OpenFileRecord, holders: &Holders<'_>) -> Result<(), FileError> {
        let body = possible(record)?;
        let Some(place) = holders.first(record.id) else {
            return Ok(());
        };
        let socket = holders.fetch(place)?;
        if !body.is_echo() {
            let detach = set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &[0; 4]);
            detach.map_err(|source| system("open the ears of", record.id, source.into()))?;
        }
        options::set_late(socket.as_fd(), &body.options)
            .map_err(|error| system("set the options of", record.id, error.into()))
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body = possible(record)?;
        let device = body
            .devices
            .first()
            .map(|(_, name)| format!(" of {name}"))
            .unwrap_or_default();
        let what = match body.family {
            libc::AF_PACKET => format!("packets{device}"),
            libc::AF_NETLINK => format!("netlink, protocol {}", body.protocol),
            _ if body.is_echo() => "echoes".to_owned(),
            _ => format!("raw, protocol {}", body.protocol),
        };
        Ok(match body.packets.len() {
            0 => what,
            count => format!("{what}, {count} packets wait"),
        })
    }

    fn obstacle(&self, record: &OpenFileRecord, _root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        possible(record).map(|_| None)
    }
}

/// Names of the network devices that a file needs, where it is of this kind.
pub(super) fn devices_in(record: &OpenFileRecord) -> Result<BTreeSet<String>, FileError> {
    if record.kind != NAME {
        return Ok(BTreeSet::new());
    }
    let body = possible(record)?;
    let names = body.devices.into_iter().map(|(_, name)| name);
    Ok(names.chain(options::bound_device(&body.options)).collect())
}

fn possible(record: &OpenFileRecord) -> Result<Body, FileError> {
    let body: Body = decode(record)?;
    if body.is_possible() {
        Ok(body)
    } else {
        Err(FileError::Unknown {
            id: record.id,
            what: "there is no such raw socket".to_owned(),
        })
    }
}

/// A new one in its network namespace.
fn make(id: u32, body: &Body, context: &OpenContext<'_>) -> Result<OwnedFd, FileError> {
    // A packet socket takes nothing before it is bound. Others do, so they are not made ahead.
    let protocol = if body.family == libc::AF_PACKET {
        0
    } else {
        body.protocol
    };
    let make = || {
        new_alone(
            id,
            (context.network(id), (body.family, body.kind, protocol)),
            context.makers(),
        )
    };
    if body.is_echo() {
        echo::allowed(id, context, make)
    } else {
        make()
    }
}

/// Has a socket take nothing that comes.
fn take_nothing(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    const NOTHING: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
    set_program(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &NOTHING)
}
