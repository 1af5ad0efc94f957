//! An AT keyboard: the commands it answers and its output buffer.

use serde::{Deserialize, Serialize};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// Bytes that a keyboard buffers; more than a real one's 16, so that answers to a reset always fit beside keys.
const BUFFER: usize = 32;

/// The keyboard's side of the cable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Keyboard {
    /// At most [`BUFFER`] bytes.
    pub out: Vec<u8>,
    scanning: bool,
    scan_set: u8,
    /// A command whose parameter comes next.
    command: Option<u8>,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self { out: Vec::new(), scanning: true, scan_set: 2, command: None }
    }
}

impl Keyboard {
    pub fn check(&self) -> bool {
        self.out.len() <= BUFFER
    }

    fn answer(&mut self, bytes: &[u8]) {
        // An answer pushes keys out if it must.
        let keep = BUFFER - bytes.len();
        self.out.truncate(keep);
        self.out.extend_from_slice(bytes);
    }

    pub fn send_keys(&mut self, codes: &[u8]) -> bool {
        let fits = self.scanning && self.out.len() + codes.len() <= BUFFER / 2;
        if fits {
            self.out.extend_from_slice(codes);
        }
        fits
    }

    /// A byte from the controller.
    pub fn receive(&mut self, byte: u8) {
        match (self.command.take(), byte) {
            // LEDs, typematic rate: acknowledged and without effect.
            (Some(0xed | 0xf3), _) => self.answer(&[ACK]),
            (Some(0xf0), 0) => {
                let set = self.scan_set;
                self.answer(&[ACK, set]);
            }
            (Some(0xf0), 1..=3) => {
                self.scan_set = byte;
                self.answer(&[ACK]);
            }
            (Some(_), _) => self.answer(&[RESEND]),
            (None, 0xed | 0xf0 | 0xf3) => {
                self.command = Some(byte);
                self.answer(&[ACK]);
            }
            (None, 0xee) => self.answer(&[0xee]),
            (None, 0xf2) => self.answer(&[ACK, 0xab, 0x83]),
            (None, 0xf4) => {
                self.scanning = true;
                self.out.clear();
                self.answer(&[ACK]);
            }
            (None, 0xf5 | 0xf6) => {
                *self = Self { scanning: byte == 0xf6, ..Self::default() };
                self.answer(&[ACK]);
            }
            // Key types of scan code set 3.
            (None, 0xf7..=0xfa) => self.answer(&[ACK]),
            (None, 0xff) => {
                *self = Self::default();
                self.answer(&[ACK, 0xaa]);
            }
            (None, _) => self.answer(&[RESEND]),
        }
    }
}
