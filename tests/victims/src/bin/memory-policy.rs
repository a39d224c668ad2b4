//! NUMA policies of ranges (mbind), which show on a machine of one node too.

use std::io;
use victims::{
    Findings, call,
    memory::{Mapping, PAGE},
    play,
};

const MPOL_F_ADDR: usize = 2;
const MPOL_F_STATIC_NODES: usize = 1 << 15;
/// Preferred, bound, interleaved, local.
const MODES: [(usize, usize); 5] = [(1, 1), (2, 1), (3, 1), (2 | MPOL_F_STATIC_NODES, 1), (4, 0)];

fn main() {
    play(|stage| {
        let mut areas: Vec<(Mapping, (u32, u64))> = Vec::new();
        for (mode, nodes) in MODES {
            for flags in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
                let area = Mapping::anonymous(8 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags);
                set(area, 2, 4, mode, nodes).expect("mbind");
                area.mark(3, mode as u64);
                areas.push((area, policy(area, 3)));
            }
        }
        let inherited = areas.clone();
        stage.child("child", move |_| {
            set(inherited[0].0, 2, 4, 0, 0).expect("mbind");
            let seen: Vec<_> = inherited.iter().map(|(area, _)| (*area, policy(*area, 3))).collect();
            move |findings: &mut Findings| check(findings, &seen)
        });
        move |findings: &mut Findings| {
            if findings.sabotage() {
                set(areas[2].0, 3, 1, 0, 0).expect("mbind");
            }
            check(findings, &areas);
            findings.same("the policy beside it", &(0, 0), &policy(areas[0].0, 0));
        }
    })
}

fn check(findings: &mut Findings, areas: &[(Mapping, (u32, u64))]) {
    for (area, seen) in areas {
        findings.same("a policy", seen, &policy(*area, 3));
    }
}

fn set(area: Mapping, page: usize, pages: usize, mode: usize, nodes: usize) -> io::Result<()> {
    let (mask, bits) = if nodes == 0 {
        (0, 0)
    } else {
        (&raw const nodes as usize, 64)
    };
    let arguments = [area.address + page * PAGE, pages * PAGE, mode, mask, bits, 0];
    // SAFETY: a range of our own, and a mask of 64 bits.
    unsafe { call::raw(libc::SYS_mbind, &arguments) }.map(drop)
}

fn policy(area: Mapping, page: usize) -> (u32, u64) {
    let (mut mode, mut nodes) = (0u32, [0u64; 16]);
    let arguments = [
        &raw mut mode as usize,
        nodes.as_mut_ptr() as usize,
        1025,
        area.address + page * PAGE,
        MPOL_F_ADDR,
    ];
    // SAFETY: room for a mode and 1024 bits.
    unsafe { call::raw(libc::SYS_get_mempolicy, &arguments) }.expect("get_mempolicy");
    (mode, nodes[0])
}
