//! Who a thread is: users, groups, capabilities, securebits and what hangs on them, different in every thread and
//! process.

use victims::{Findings, Stage, Team, call, own, play};

const CAP_CHOWN: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_KILL: u32 = 5;
const CAP_SETPCAP: u32 = 8;
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_SYS_CHROOT: u32 = 18;
const CAP_SYS_NICE: u32 = 23;
const PR_CAP_AMBIENT: i32 = 47;
const NO_SETUID_FIXUP: usize = 1 << 2;
const NO_SETUID_FIXUP_LOCKED: usize = 1 << 3;
const KEEP_CAPS: usize = 1 << 4;
const NO_CAP_AMBIENT_RAISE: usize = 1 << 6;

fn main() {
    play(|stage| {
        stage.child("user", |_| {
            groups(&[]);
            ids([1000; 3], None, [1000; 3], None);
            member()
        });
        stage.child("all ids different", |stage| {
            groups(&[7, 11, 4_000_000_000, 12]);
            securebits(NO_SETUID_FIXUP);
            ids([1001, 1002, 1003], Some(1004), [2001, 2002, 2003], Some(2004));
            call::prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).expect("dumpable");
            stage.child("its child", |_| member());
            member()
        });
        stage.child("user with capabilities", |_| {
            securebits(NO_SETUID_FIXUP);
            ids([1005; 3], None, [1005; 3], None);
            let ambient = bits(&[CAP_NET_BIND_SERVICE, CAP_KILL]);
            for capability in [CAP_SYS_CHROOT, CAP_SYS_NICE, 39] {
                call::prctl(libc::PR_CAPBSET_DROP, [capability as usize, 0, 0, 0]).expect("drop");
            }
            let inheritable = bits(&[CAP_CHOWN]) | ambient;
            capabilities(inheritable, !0, ambient | bits(&[CAP_DAC_OVERRIDE, CAP_SETPCAP]));
            for capability in [CAP_NET_BIND_SERVICE, CAP_KILL] {
                call::prctl(PR_CAP_AMBIENT, [2, capability as usize, 0, 0]).expect("raise");
            }
            securebits(NO_SETUID_FIXUP | NO_SETUID_FIXUP_LOCKED | NO_CAP_AMBIENT_RAISE);
            capabilities(inheritable, ambient, ambient | bits(&[CAP_DAC_OVERRIDE]));
            member()
        });
        stage.child("root without power", |_| {
            call::prctl(libc::PR_SET_KEEPCAPS, [1, 0, 0, 0]).expect("keep capabilities");
            call::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).expect("no new privileges");
            call::prctl(libc::PR_SET_DUMPABLE, [0; 4]).expect("not dumpable");
            capabilities(0, 0, 0);
            member()
        });
        threads(stage);
        same_threads(stage);
        member()
    })
}

/// A process whose threads are all the same user, may leave a core, and keep their addresses.
fn same_threads(stage: &Stage) {
    stage.child("user with threads", |_| {
        ids([1006; 3], None, [1006; 3], None);
        // SAFETY: a plain number.
        unsafe { call::raw(libc::SYS_personality, &[libc::ADDR_NO_RANDOMIZE as usize]) }.expect("personality");
        call::prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).expect("dumpable");
        let mut team = Team::default();
        for n in 0..3 {
            team.spawn(&format!("thread {n}"), member);
        }
        let mut own = member();
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
        }
    });
}

/// A process each of whose threads is somebody else.
fn threads(stage: &Stage) {
    stage.child("process with threads", |_| {
        let mut team = Team::default();
        for n in 0..6_u32 {
            team.spawn(&format!("thread {n}"), move || {
                groups(&[n, 100 + n]);
                securebits(NO_SETUID_FIXUP | if n == 3 { KEEP_CAPS } else { 0 });
                let user = |k| 1100 + 10 * n + k;
                ids(
                    [user(0), user(1), user(2)],
                    Some(user(3)),
                    [user(4), user(5), user(6)],
                    None,
                );
                if n == 2 {
                    call::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).expect("no new privileges");
                }
                capabilities(0, 1 << n, bits(&[CAP_KILL]) | 1 << n);
                member()
            });
        }
        let mut own = member();
        move |findings: &mut Findings| {
            own(findings);
            team.check(findings);
        }
    });
}

fn member() -> impl FnMut(&mut Findings) + use<> {
    let before = all();
    move |findings| {
        if findings.sabotage() {
            call::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).expect("no new privileges");
        }
        for (before, now) in before.iter().zip(all()) {
            findings.same("of its credentials one", before, &now);
        }
    }
}

fn all() -> Vec<String> {
    let lines = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
    ];
    let mut all: Vec<String> = lines.iter().map(|key| format!("{key} {}", own::status(key))).collect();
    let options = [libc::PR_GET_SECUREBITS, libc::PR_GET_KEEPCAPS, libc::PR_GET_DUMPABLE];
    // SAFETY: a plain number, which asks only.
    let personality = unsafe { call::raw(libc::SYS_personality, &[0xffff_ffff]) };
    all.push(format!("personality: {:?}", personality.ok()));
    all.extend(options.map(|option| format!("prctl {option}: {:?}", call::prctl(option, [0; 4]).ok())));
    all
}

fn bits(capabilities: &[u32]) -> u64 {
    capabilities.iter().map(|capability| 1 << capability).sum()
}

fn groups(list: &[u32]) {
    // SAFETY: the list has that many groups. By its number, because the C library changes all threads.
    unsafe { call::raw(libc::SYS_setgroups, &[list.len(), list.as_ptr() as usize]) }.expect("setgroups");
}

/// Real, effective, saved and, where it is another one, filesystem ids; groups first.
fn ids(users: [u32; 3], user: Option<u32>, groups: [u32; 3], group: Option<u32>) {
    let three = |ids: [u32; 3]| ids.map(|id| id as usize);
    // SAFETY: plain numbers.
    unsafe { call::raw(libc::SYS_setresgid, &three(groups)) }.expect("setresgid");
    // SAFETY: plain numbers. It returns the one that was.
    group.map(|group| unsafe { call::raw(libc::SYS_setfsgid, &[group as usize]) });
    // SAFETY: plain numbers.
    unsafe { call::raw(libc::SYS_setresuid, &three(users)) }.expect("setresuid");
    // SAFETY: plain numbers. It returns the one that was.
    user.map(|user| unsafe { call::raw(libc::SYS_setfsuid, &[user as usize]) });
}

fn securebits(bits: usize) {
    call::prctl(libc::PR_SET_SECUREBITS, [bits, 0, 0, 0]).expect("securebits");
}

fn capabilities(inheritable: u64, effective: u64, permitted: u64) {
    let effective = effective & permitted;
    let header = [0x2008_0522_u32, 0];
    let data: Vec<u32> = [0, 32]
        .into_iter()
        .flat_map(|shift| [effective, permitted, inheritable].map(|set| (set >> shift) as u32))
        .collect();
    let args = [header.as_ptr() as usize, data.as_ptr() as usize];
    // SAFETY: the structures have the size of version 3.
    unsafe { call::raw(libc::SYS_capset, &args) }.expect("capset");
}
