//! Commands typed on the terminal: the escape character (Ctrl-A) and a letter.

/// The escape character without `-echr`: Ctrl-A.
pub const DEFAULT_ESCAPE: u8 = 1;

/// What a person asked the emulator for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the emulator.
    Quit,
    /// Show what can be typed.
    Help,
    /// Send the guest a break.
    Break,
    /// Switch to the monitor.
    Monitor,
}

/// Tells commands from what is typed for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Escape {
    character: u8,
    seen: bool,
}

impl Escape {
    /// Looks for this character.
    pub fn new(character: u8) -> Self {
        Escape { character, seen: false }
    }

    /// Takes one typed byte: what it means for the emulator, or the byte that is for the guest, or neither.
    pub fn take(&mut self, byte: u8) -> Typed {
        if !self.seen {
            if byte == self.character {
                self.seen = true;
                return Typed::Nothing;
            }
            return Typed::ForGuest(byte);
        }
        self.seen = false;
        match byte {
            _ if byte == self.character => Typed::ForGuest(byte),
            b'x' => Typed::Command(Command::Quit),
            b'h' | b'?' => Typed::Command(Command::Help),
            b'b' => Typed::Command(Command::Break),
            b'c' => Typed::Command(Command::Monitor),
            _ => Typed::Nothing,
        }
    }

    /// What [`Command::Help`] shows.
    pub fn help(self) -> String {
        let key = match self.character {
            code @ 1..=26 => format!("Ctrl-{}", char::from(b'A' + code - 1)),
            code => format!("character {code}"),
        };
        format!(
            "\n{key} h    this help\n{key} x    end the emulator\n{key} b    send a break to the guest\n\
             {key} {key}    send {key} to the guest\n"
        )
    }
}

/// What [`Escape::take`] made of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// It is the guest's.
    ForGuest(u8),
    /// It completes a command.
    Command(Command),
    /// It begins a command, or is none.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_text() {
        let mut escape = Escape::new(DEFAULT_ESCAPE);
        let mut typed = |text: &[u8]| text.iter().map(|&byte| escape.take(byte)).collect::<Vec<_>>();
        assert_eq!(typed(b"x\x03"), [Typed::ForGuest(b'x'), Typed::ForGuest(3)]);
        assert_eq!(typed(b"\x01x"), [Typed::Nothing, Typed::Command(Command::Quit)]);
        assert_eq!(typed(b"\x01\x01x"), [Typed::Nothing, Typed::ForGuest(1), Typed::ForGuest(b'x')]);
        assert_eq!(typed(b"\x01qx"), [Typed::Nothing, Typed::Nothing, Typed::ForGuest(b'x')]);
        let mut other = Escape::new(20);
        assert_eq!(other.take(1), Typed::ForGuest(1));
        assert!(other.help().contains("Ctrl-T x"));
    }
}
