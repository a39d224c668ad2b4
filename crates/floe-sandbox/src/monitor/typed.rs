//! Whether the line that is being typed at a terminal is unfinished. The kernel keeps it back from programs until it ends
//! (termios(3), canonical mode), and tells nobody how long it is.

use floe_sys::terminal::TerminalSettings;
use std::os::fd::RawFd;

/// The line that is being typed.
#[derive(Debug, Default)]
pub struct TypedLine {
    bytes: usize,
}

impl TypedLine {
    /// Notes bytes that were written to the terminal's `master`.
    pub fn note(&mut self, master: RawFd, bytes: &[u8]) {
        match TerminalSettings::read(master) {
            Ok(settings) => self.follow(&settings, bytes),
            Err(error) => tracing::debug!(%error, "read the settings of the terminal"),
        }
    }

    /// Whether the terminal holds a line that has not ended.
    pub fn is_unfinished(&self) -> bool {
        self.bytes > 0
    }

    fn follow(&mut self, settings: &TerminalSettings, bytes: &[u8]) {
        for byte in bytes {
            if settings.ends_line(*byte) {
                self.bytes = 0;
            } else if settings.erases(*byte) {
                self.bytes = self.bytes.saturating_sub(1);
            } else {
                self.bytes += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TypedLine;
    use floe_sys::terminal::TerminalSettings;

    /// As a fresh pseudo-terminal has them: ICRNL; ISIG, ICANON, ECHO; ^C ^\ DEL ^U ^D … ^Z.
    fn settings(local: u32) -> TerminalSettings {
        let mut bytes = [0; TerminalSettings::BYTES];
        bytes[..4].copy_from_slice(&0o400u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&local.to_ne_bytes());
        bytes[17..22].copy_from_slice(&[3, 28, 127, 21, 4]);
        bytes[27] = 26;
        TerminalSettings::from_bytes(&bytes).expect("their size")
    }

    fn is_unfinished(local: u32, typed: &[u8]) -> bool {
        let mut line = TypedLine::default();
        line.follow(&settings(local), typed);
        line.is_unfinished()
    }

    #[test]
    fn lines_end_by_return_signals_and_end_of_file() {
        const CANONICAL: u32 = 0o13;
        assert!(is_unfinished(CANONICAL, b"ls"));
        for typed in [
            &b"ls\r"[..],
            b"ls\n",
            b"ls\x03",
            b"ls\x15",
            b"ls\x04",
            b"ls\x1a",
            b"ls\x7f\x7f",
            b"",
        ] {
            assert!(!is_unfinished(CANONICAL, typed), "{typed:?}");
        }
    }

    #[test]
    fn there_are_no_lines_in_raw_mode() {
        assert!(!is_unfinished(0, b"ls"));
    }
}
