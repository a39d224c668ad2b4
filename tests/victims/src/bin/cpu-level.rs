//! What glibc chose for the level of processors that this was started for (`floe run --cpu`), and chooses again in programs that
//! it starts. With the argument `anywhere` those may choose otherwise: of what a level has, glibc prefers this or that by the maker.

use std::{
    ffi::{CStr, c_void},
    mem::MaybeUninit,
    process::Command,
};
use victims::{Findings, play};

/// Functions of which glibc has several, for processors of several levels.
const NAMES: [&CStr; 8] = [
    c"memcpy",
    c"memset",
    c"memchr",
    c"memcmp",
    c"strlen",
    c"strchr",
    c"strcasecmp",
    c"strstr",
];
/// Given alone, it prints what is chosen in it.
const SHOW: &str = "--show";

fn main() {
    if std::env::args().any(|argument| argument == SHOW) {
        println!("{}", chosen());
        return;
    }
    play(|_| {
        let (own, tunables) = (chosen(), std::env::var("GLIBC_TUNABLES").unwrap_or_default());
        let in_child = child(&tunables);
        let anywhere = std::env::args().any(|argument| argument == "anywhere");
        assert_eq!(own, in_child, "both were started alike");
        move |findings: &mut Findings| {
            let now = match findings.sabotage() {
                true => format!("{tunables},-SSSE3,-SSE4_1,-SSE4_2"),
                false => tunables.clone(),
            };
            findings.same("what is chosen", &own, &chosen());
            let in_child = child(&now);
            findings.that(!in_child.is_empty(), "a child is not well");
            if !anywhere {
                findings.same("what a child chooses", &own, &in_child);
            }
            findings.that(works(), "what is chosen does not do what it should");
        }
    })
}

/// Where in libc the chosen ones stand.
fn chosen() -> String {
    let places = NAMES.map(|name| {
        let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: the name ends with a NUL, and there is room for what is found.
        let (place, info) = unsafe {
            let place = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            assert!(
                libc::dladdr(place, found.as_mut_ptr()) != 0,
                "{name:?} is in no library"
            );
            (place as usize, found.assume_init())
        };
        format!("{:#x}", place - info.dli_fbase as usize)
    });
    places.join(" ")
}

fn child(tunables: &str) -> String {
    let mut command = Command::new(std::env::current_exe().expect("its own path"));
    let output = command
        .arg(SHOW)
        .env("GLIBC_TUNABLES", tunables)
        .output()
        .expect("start it");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

fn works() -> bool {
    let source: Vec<u8> = (0..70_000_u32).map(|at| (at % 251) as u8 + 1).collect();
    [1, 15, 64, 300, 5000, 69_999].iter().all(|length| {
        let mut copy = vec![0_u8; length + 1];
        // SAFETY: both are long enough, and the copy ends with a NUL.
        let same = unsafe {
            libc::memcpy(copy.as_mut_ptr().cast::<c_void>(), source.as_ptr().cast(), *length);
            libc::memcmp(copy.as_ptr().cast(), source.as_ptr().cast(), *length) == 0
                && libc::strlen(copy.as_ptr().cast()) == *length
        };
        same && copy[..*length] == source[..*length]
    })
}
