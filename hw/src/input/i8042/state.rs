//! The controller's registers.

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::StateMachine;
use tessera_hw_core::log::GUEST_ERRORS;

use super::keyboard::Keyboard;

/// Status bits.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const UNLOCKED: u8 = 1 << 4;
}
/// Command byte bits.
mod control {
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    pub const AUX_OFF: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
}

/// What a write asks of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    None,
    /// Switch A20.
    A20(bool),
    /// Pulse the reset line.
    Reset,
}

/// The 8042 and the keyboard behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Controller {
    control: u8,
    /// The last write was to the command port.
    was_command: bool,
    /// An answer of the controller itself.
    answer: Option<u8>,
    /// What a read without new data gives.
    last: u8,
    /// A command whose parameter comes next.
    command: Option<u8>,
    ram: [u8; 32],
    /// Set 2 sent a break prefix, which translation folds into the next code.
    break_prefix: bool,
    keyboard: Keyboard,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            control: control::KEYBOARD_INTERRUPT | control::SYSTEM | control::AUX_OFF | control::TRANSLATE,
            was_command: false,
            answer: None,
            last: 0,
            command: None,
            ram: [0; 32],
            break_prefix: false,
            keyboard: Keyboard::default(),
        }
    }
}

/// Scan code set 2 to set 1, by the table in the controller's ROM. 0 stands for codes that have none and pass unchanged.
const TRANSLATION: [u8; 0x85] = {
    let mut t = [0; 0x85];
    // Set 1 code, in order from 1, of the set 2 codes.
    let set2: [u8; 0x58] = [
        0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d, 0x15, 0x1d,
        0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b, 0x23, 0x2b, 0x34,
        0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a, 0x32, 0x31, 0x3a, 0x41,
        0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03, 0x0b, 0x83, 0x0a, 0x01, 0x09,
        0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69, 0x72, 0x7a, 0x70, 0x71, 0x84, 0x60,
        0x61, 0x78, 0x07,
    ];
    let mut i = 0;
    while i < set2.len() {
        t[set2[i] as usize] = i as u8 + 1;
        i += 1;
    }
    t
};

impl Controller {
    fn keyboard_off(&self) -> bool {
        self.control & control::KEYBOARD_OFF != 0
    }

    fn output_full(&self) -> bool {
        self.answer.is_some() || (!self.keyboard_off() && !self.keyboard.out.is_empty())
    }

    /// Level of IRQ 1.
    pub fn interrupt(&self) -> bool {
        self.control & control::KEYBOARD_INTERRUPT != 0 && self.output_full()
    }

    /// Port 0x64.
    pub fn status(&self) -> u8 {
        let mut s = status::UNLOCKED;
        if self.output_full() {
            s |= status::OUTPUT_FULL;
        }
        if self.control & control::SYSTEM != 0 {
            s |= status::SYSTEM;
        }
        if self.was_command {
            s |= status::COMMAND;
        }
        s
    }

    /// Reads port 0x60.
    pub fn read_data(&mut self) -> u8 {
        if let Some(v) = self.answer.take() {
            self.last = v;
        } else if !self.keyboard_off() && !self.keyboard.out.is_empty() {
            let code = self.keyboard.out.remove(0);
            self.last = if self.control & control::TRANSLATE == 0 {
                code
            } else if code == 0xf0 && !self.keyboard.out.is_empty() {
                // The prefix and its code are one code in set 1.
                let code = self.keyboard.out.remove(0);
                translate(code) | 0x80
            } else {
                translate(code)
            };
        }
        self.last
    }

    /// Keys from outside.
    pub fn send_keys(&mut self, codes: &[u8]) -> bool {
        self.keyboard.send_keys(codes)
    }

    /// Writes port 0x64. `a20` is the line's state, which the output port shows.
    pub fn write_command(&mut self, command: u8, a20: bool) -> Request {
        self.was_command = true;
        self.command = None;
        match command {
            0x20 => self.answer = Some(self.control),
            0x21..=0x3f => self.answer = Some(self.ram[usize::from(command & 0x1f)]),
            // Write RAM, output port, output buffers; write to the auxiliary device: a parameter follows.
            0x60..=0x7f | 0xd1..=0xd4 => self.command = Some(command),
            0xa7 => self.control |= control::AUX_OFF,
            0xa8 => self.control &= !control::AUX_OFF,
            // Test of the auxiliary port: its clock line is stuck low, for there is none.
            0xa9 => self.answer = Some(0x01),
            0xaa => {
                self.control |= control::SYSTEM;
                self.answer = Some(0x55);
            }
            0xab => self.answer = Some(0),
            0xad => self.control |= control::KEYBOARD_OFF,
            0xae => self.control &= !control::KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => self.answer = Some(0x80),
            // Output port: reset line up, A20, keyboard data and clock up.
            0xd0 => self.answer = Some(0xc1 | u8::from(a20) << 1 | u8::from(self.output_full()) << 4),
            0xdd => return Request::A20(false),
            0xdf => return Request::A20(true),
            // Pulse output lines; line 0 is reset, active low.
            0xf0..=0xff if command & 1 == 0 => return Request::Reset,
            0xf0..=0xff => {}
            _ => tracing::debug!(target: GUEST_ERRORS, "i8042: command {command:#x}"),
        }
        Request::None
    }

    /// Writes port 0x60.
    pub fn write_data(&mut self, value: u8) -> Request {
        self.was_command = false;
        match self.command.take() {
            Some(0x60) => self.control = value,
            Some(c @ 0x61..=0x7f) => self.ram[usize::from(c & 0x1f)] = value,
            Some(0xd1) if value & 1 == 0 => return Request::Reset,
            Some(0xd1) => return Request::A20(value & 2 != 0),
            // As if the keyboard had sent it. Without auxiliary port its loop command does the same, which is how a guest
            // sees that there is none.
            Some(0xd2 | 0xd3) => self.answer = Some(value),
            // Nobody there: the byte times out.
            Some(0xd4) => {}
            Some(_) => {}
            None => {
                // Talking to the keyboard switches it on.
                self.control &= !control::KEYBOARD_OFF;
                self.keyboard.receive(value);
            }
        }
        Request::None
    }
}

fn translate(code: u8) -> u8 {
    match TRANSLATION.get(usize::from(code)) {
        Some(&t) if t != 0 => t,
        _ => code,
    }
}

impl StateMachine for Controller {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self::default();
    }
    fn check(&self) -> Result<(), &'static str> {
        if self.keyboard.check() { Ok(()) } else { Err("keyboard buffer too long") }
    }
}
