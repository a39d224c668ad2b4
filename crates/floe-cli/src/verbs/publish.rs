//! Ports of the host that are a sandbox's: `--publish` of `floe run` and `floe restore`.

use floe_sandbox::Published;
use std::collections::HashSet;

/// Parses one.
pub fn published(text: &str) -> Result<Published, String> {
    let (ports, udp) = match text.split_once('/') {
        Some((ports, "udp")) => (ports, true),
        Some((ports, "tcp")) => (ports, false),
        Some(_) => return Err("a port is of tcp or udp".to_owned()),
        None => (text, false),
    };
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
    let both = ports
        .split_once(':')
        .and_then(|(host, inside)| Some((port(host)?, port(inside)?)));
    both.map(|(host, inside)| Published { udp, host, inside })
        .ok_or_else(|| format!("{text:?} is not HOSTPORT:PORT, e.g. 8080:80"))
}

/// All of them, if there are some, when no port of the host is among them twice.
pub fn all_different(ports: &[Published]) -> anyhow::Result<Option<&[Published]>> {
    let mut hosts = HashSet::new();
    if let Some(port) = ports.iter().find(|port| !hosts.insert((port.udp, port.host))) {
        anyhow::bail!("port {port}: the host's is published already");
    }
    Ok((!ports.is_empty()).then_some(ports))
}
