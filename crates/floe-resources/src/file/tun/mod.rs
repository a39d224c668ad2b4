//! Files of /dev/net/tun, with and without a network device behind them. A device goes with its last file, unless it is
//! to stay; so it is made again, with its addresses and routes, in the network namespace of the tree.

mod device;
mod found;

use super::{ConsoleLinks, DumpContext, FileError, FileKind, FoundFile, OpenContext, decode, named, open_flags};
use device::Device;
use floe_image::{
    Image, codec,
    record::{ObjectRecord, OpenFileRecord},
};
use floe_sys::{descriptor::open_in_root, tun};
pub(super) use found::FoundTuns;
use nix::{errno::Errno, sys::stat::fstat};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

const OBJECT_KIND: &str = "tun";

/// The kind.
pub struct Tun;

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    #[serde(with = "serde_bytes")]
    path: Vec<u8>,
    /// The device, and whether the file's queue is switched off.
    device: Option<(u32, bool)>,
}

/// The devices that were made again.
pub(super) type MadeTuns = HashSet<u32>;

impl FileKind for Tun {
    fn name(&self) -> &'static str {
        "tun"
    }

    fn claims(&self, file: &FoundFile, _console: &ConsoleLinks) -> bool {
        tun::is_it(file.file_type(), file.metadata.rdev())
    }

    fn dump(&self, file: &FoundFile, context: &mut DumpContext<'_>) -> Result<Option<Vec<u8>>, FileError> {
        let Some(path) = named(file, "device", context) else {
            return Ok(None);
        };
        let device = match found::device_of(file, context)? {
            Ok(device) => device,
            Err((reason, advice, passing)) => {
                let object = file.title();
                context.refusals.add(Some(&file.subject), object, reason, advice);
                if let Some(passing) = passing {
                    context.refusals.last_passes(passing);
                }
                return Ok(None);
            }
        };
        Ok(Some(codec::encode(&Body { path, device })?))
    }

    fn open(&self, record: &OpenFileRecord, context: &mut OpenContext<'_>) -> Result<OwnedFd, FileError> {
        let body: Body = decode(record)?;
        let device = body
            .device
            .map(|(number, detached)| Ok::<_, FileError>((device(number, record, context)?, detached)))
            .transpose()?;
        let is_first = body.device.is_some_and(|(number, _)| context.tuns.insert(number));
        let (root, flags) = (context.root(record), open_flags(record));
        let make = || {
            let file = open_in_root(root, Path::new(OsStr::from_bytes(&body.path)), flags, 0)?;
            let found = fstat(file.as_fd())?;
            if !tun::is_it(found.st_mode & libc::S_IFMT, found.st_rdev) {
                return Err(Errno::ENODEV.into());
            }
            if let Some((device, detached)) = &device {
                device.attach(file.as_fd(), is_first)?;
                if *detached {
                    tun::detach_queue(file.as_fd())?;
                }
            }
            Ok(file)
        };
        context
            .inside(record.network, make)
            .map_err(|source| FileError::System {
                action: "make again the network device of",
                object: String::from_utf8_lossy(&body.path).into_owned(),
                source,
            })
    }

    fn describe(&self, record: &OpenFileRecord) -> Result<String, FileError> {
        let body: Body = decode(record)?;
        let path = String::from_utf8_lossy(&body.path);
        Ok(match body.device {
            Some((device, _)) => format!("{path}, network device {device}"),
            None => format!("{path}, no network device"),
        })
    }

    fn obstacle(&self, record: &OpenFileRecord, root: BorrowedFd<'_>) -> Result<Option<String>, FileError> {
        let body: Body = decode(record)?;
        super::device::path_obstacle(root, Path::new(OsStr::from_bytes(&body.path)), libc::S_IFCHR)
    }
}

/// Names of the network devices that an image makes.
pub(super) fn names(image: &Image) -> Result<BTreeSet<String>, FileError> {
    let objects = image.objects().iter().filter(|object| object.kind == OBJECT_KIND);
    let name = |object: &ObjectRecord| {
        let device: Device = codec::decode(&object.body).map_err(|source| FileError::Decode {
            id: object.id,
            kind: OBJECT_KIND.to_owned(),
            source,
        })?;
        let name = device.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    };
    objects.map(name).collect()
}

fn device(number: u32, record: &OpenFileRecord, context: &OpenContext<'_>) -> Result<Device, FileError> {
    let mut objects = context.objects.iter();
    let object = objects.find(|object| object.kind == OBJECT_KIND && object.id == number);
    let lacking = || FileError::Unknown {
        id: record.id,
        what: format!("the image lacks network device {number}"),
    };
    codec::decode(&object.ok_or_else(lacking)?.body).map_err(|source| FileError::Decode {
        id: record.id,
        kind: OBJECT_KIND.to_owned(),
        source,
    })
}
