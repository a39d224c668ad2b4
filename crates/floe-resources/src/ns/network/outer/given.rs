//! What the user gives for ends at the host: `--net DEVICE=NAME[@BRIDGE][,ADDRESS/BITS…]` of a restore.

use floe_image::record::{NetworkDeviceRecord, NetworkRecord};
use floe_sys::route::ipv4::Network;
use std::str::FromStr;

/// IFNAMSIZ of linux/if.h.
const NAME_BYTES: usize = 16;

/// An end at the host that the user gives a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenEnd {
    /// The device's network namespace, by its number in the image; any where `None`.
    namespace: Option<u32>,
    device: String,
    pub(super) name: String,
    pub(super) bridge: Option<String>,
    pub(super) addresses: Vec<Network>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct GivenEnds {
    all: Vec<GivenEnd>,
    /// Whether those for devices that an image has not are not for it.
    where_they_fit: bool,
}

/// What can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// No two devices.
    #[error(
        "{0:?} is not DEVICE=NAME[@BRIDGE][,ADDRESS/BITS], e.g. eth0=veth0@br0 or eth0=veth0,10.0.0.1/24: a device of the \
         tree, and what its other end is called here"
    )]
    Form(String),
    /// No address.
    #[error("{0:?} is no address of IPv4 with the bits of its network, as 10.0.0.1/24")]
    Address(String),
    /// Given twice.
    #[error("{0:?} is given twice")]
    Twice(String),
}

impl FromStr for GivenEnd {
    type Err = EndError;

    fn from_str(text: &str) -> Result<Self, EndError> {
        let bad = || EndError::Form(text.to_owned());
        let (device, end) = text.split_once('=').ok_or_else(bad)?;
        let (namespace, device) = match device.split_once(':') {
            Some((number, device)) => (Some(number.parse().map_err(|_| bad())?), device),
            None => (None, device),
        };
        let mut parts = end.split(',');
        let end = parts.next().unwrap_or_default();
        let (name, bridge) = match end.split_once('@') {
            Some((name, bridge)) => (name, Some(bridge)),
            None => (end, None),
        };
        let is_possible = !device.is_empty() && is_name(name) && bridge.is_none_or(is_name);
        if !is_possible {
            return Err(bad());
        }
        Ok(Self {
            namespace,
            device: device.to_owned(),
            name: name.to_owned(),
            bridge: bridge.map(str::to_owned),
            addresses: parts.map(address).collect::<Result<_, _>>()?,
        })
    }
}

/// What the kernel takes for one that is not to be numbered by it.
fn is_name(name: &str) -> bool {
    let odd = |byte: u8| matches!(byte, b'/' | b':' | b'%') || !byte.is_ascii_graphic();
    !matches!(name, "" | "." | "..") && name.len() < NAME_BYTES && !name.bytes().any(odd)
}

fn address(text: &str) -> Result<Network, EndError> {
    let parts = text.split_once('/');
    let network = parts.and_then(|(address, bits)| {
        Some(Network {
            address: address.parse().ok()?,
            bits: bits.parse().ok().filter(|bits| (1..=32).contains(bits))?,
        })
    });
    network.ok_or_else(|| EndError::Address(text.to_owned()))
}

impl std::fmt::Display for GivenEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace {
            Some(number) => write!(f, "--net {number}:{}", self.device),
            None => write!(f, "--net {}", self.device),
        }
    }
}

impl GivenEnd {
    fn is_for(&self, record: &NetworkRecord, device: &NetworkDeviceRecord) -> bool {
        self.namespace.is_none_or(|number| number == record.namespace) && self.device.as_bytes() == device.name
    }

    /// How many of the image's devices it is for.
    pub(super) fn count(&self, records: &[NetworkRecord]) -> usize {
        let all = super::devices(records);
        all.filter(|(record, device)| self.is_for(record, device)).count()
    }
}

impl GivenEnds {
    /// All that is given.
    ///
    /// # Errors
    /// [`EndError::Twice`].
    pub fn new(given: Vec<GivenEnd>) -> Result<Self, EndError> {
        for (place, one) in given.iter().enumerate() {
            let before = &given[..place];
            if before.iter().any(|other| other.name == one.name) {
                return Err(EndError::Twice(one.name.clone()));
            }
            let same = |other: &GivenEnd| (other.namespace, &other.device) == (one.namespace, &one.device);
            if before.iter().any(same) {
                return Err(EndError::Twice(one.device.clone()));
            }
        }
        Ok(Self {
            all: given,
            where_they_fit: false,
        })
    }

    /// The same for images that are not known yet: one for a device that an image has not is not for it.
    ///
    /// # Errors
    /// [`EndError::Twice`].
    pub fn where_they_fit(given: Vec<GivenEnd>) -> Result<Self, EndError> {
        Ok(Self {
            where_they_fit: true,
            ..Self::new(given)?
        })
    }

    /// What is given for a device: what names its network namespace before what does not.
    pub(super) fn of(&self, record: &NetworkRecord, device: &NetworkDeviceRecord) -> Option<&GivenEnd> {
        let all = self.all.iter().filter(|given| given.is_for(record, device));
        all.max_by_key(|given| given.namespace.is_some())
    }

    /// All that must be for one of the image's devices, or is.
    pub(super) fn meant_for(&self, records: &[NetworkRecord]) -> impl Iterator<Item = &GivenEnd> {
        self.all
            .iter()
            .filter(|given| !self.where_they_fit || given.count(records) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{EndError, GivenEnd, GivenEnds};

    fn end(text: &str) -> GivenEnd {
        text.parse().expect("an end")
    }

    #[test]
    fn an_end_has_a_name_and_may_have_a_bridge_and_addresses() {
        let whole = end("6:eth0=veth0@br0,10.0.0.1/24,10.1.0.1/32");
        assert_eq!((whole.namespace, &whole.device[..]), (Some(6), "eth0"));
        assert_eq!((&whole.name[..], whole.bridge.as_deref()), ("veth0", Some("br0")));
        let bits: Vec<u8> = whole.addresses.iter().map(|network| network.bits).collect();
        assert_eq!(bits, [24, 32]);
        let bare = end("eth0=veth0");
        assert_eq!((bare.namespace, bare.bridge, bare.addresses), (None, None, Vec::new()));
    }

    #[test]
    fn what_is_no_end_is_refused() {
        for text in [
            "",
            "eth0",
            "eth0=",
            "=veth0",
            "x:eth0=veth0",
            "eth0=veth0@",
            "eth0=@br0",
            "eth0=veth%d",
            "eth0=a name",
            "eth0=sixteen-bytes-12",
            "eth0=veth0@b/r",
        ] {
            assert_eq!(text.parse::<GivenEnd>(), Err(EndError::Form(text.to_owned())));
        }
        for address in ["", "10.0.0.1", "10.0.0.1/0", "10.0.0.1/33", "fe80::1/64", "host/24"] {
            let parsed = format!("eth0=veth0,{address}").parse::<GivenEnd>();
            assert_eq!(parsed, Err(EndError::Address(address.to_owned())));
        }
    }

    #[test]
    fn nothing_is_given_twice() {
        let given = |texts: &[&str]| GivenEnds::new(texts.iter().map(|text| end(text)).collect()).map(drop);
        let twice = |what: &str| Err(EndError::Twice(what.to_owned()));
        assert_eq!(given(&["eth0=a", "eth0=b"]), twice("eth0"));
        assert_eq!(given(&["eth0=a", "eth1=a"]), twice("a"));
        assert_eq!(given(&["0:eth0=a", "6:eth0=b"]), Ok(()));
    }
}
