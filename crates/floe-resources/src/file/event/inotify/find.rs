//! What instances watch, as the kernel tells it.

use crate::file::event::watched::{Handle, number};

/// A watch.
pub(super) struct FoundWatch {
    pub(super) number: i32,
    pub(super) mask: u32,
    pub(super) file: Handle,
}

impl FoundWatch {
    /// `wd:1 ino:99 sdev:800001 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:9900000000000000`
    pub(super) fn parse(line: &str) -> Option<Self> {
        Some(Self {
            number: number(line, "wd")? as i32,
            mask: number(line, "mask")?,
            file: Handle::parse(line)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::FoundWatch;

    #[test]
    fn watches_are_read() {
        let line =
            "wd:a ino:99 sdev:fe00000 mask:800afce ignored_mask:0 fhandle-bytes:4 fhandle-type:1 f_handle:990a00ff";
        let watch = FoundWatch::parse(line).expect("a watch");
        let file = &watch.file;
        assert_eq!((watch.number, file.device, watch.mask), (10, 0xfe0_0000, 0x800_afce));
        assert_eq!((file.kind, &file.bytes[..]), (1, &[0x99, 0x0a, 0, 0xff][..]));
        assert!(FoundWatch::parse("wd:1 ino:99").is_none());
        assert!(FoundWatch::parse(&line.replace("990a", "zz0a")).is_none());
    }
}
