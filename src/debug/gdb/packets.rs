//! Packets as they come over the wire.
//!
//! Problem: what arrives may be cut anywhere, damaged, or not be the protocol at all, and none of that may reach the stub,
//! which takes a wrong packet for the end of the session. Strategy: bytes are gathered here until a packet is whole and
//! its sum is right; the rest is dropped. What is gathered is bounded.
//!
//! Source: GDB manual, appendix "GDB Remote Serial Protocol", overview.

/// Bytes of a packet's body, at most: what we tell gdb, and more than it sends.
pub const MAX_BODY: usize = 0x8000;

/// Something that has arrived whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// `+`: the last packet we sent has arrived.
    Ack,
    /// `-`: it has arrived damaged.
    Nack,
    /// Ctrl-C.
    Interrupt,
    /// A packet's body.
    Packet(Vec<u8>),
    /// A packet whose sum is wrong, or that is too long.
    Damaged,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Outside,
    Body,
    /// The first digit of the sum is next.
    Sum,
    /// The second one is; this was the first.
    LastDigit(u8),
}

/// Makes packets of bytes.
#[derive(Default)]
pub struct Framer {
    state: State,
    body: Vec<u8>,
    too_long: bool,
}

impl Framer {
    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Option<Arrival> {
        match (self.state, byte) {
            (State::Outside, b'+') => return Some(Arrival::Ack),
            (State::Outside, b'-') => return Some(Arrival::Nack),
            (State::Outside, 3) => return Some(Arrival::Interrupt),
            // Inside of a packet this byte is always escaped: the one that was begun was cut off.
            (_, b'$') => {
                self.body.clear();
                self.too_long = false;
                self.state = State::Body;
            }
            (State::Outside, _) => {}
            (State::Body, b'#') => self.state = State::Sum,
            (State::Body, byte) if self.body.len() < MAX_BODY => self.body.push(byte),
            (State::Body, _) => self.too_long = true,
            (State::Sum, digit) => self.state = State::LastDigit(digit),
            (State::LastDigit(first), second) => {
                self.state = State::Outside;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let told = digit(first).zip(digit(second)).map(|(high, low)| (high << 4 | low) as u8);
                return Some(if !self.too_long && told == Some(sum(&self.body)) {
                    Arrival::Packet(std::mem::take(&mut self.body))
                } else {
                    Arrival::Damaged
                });
            }
        }
        None
    }
}

fn sum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A packet with this body.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'$'];
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(format!("#{:02x}", sum(body)).as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(bytes: &[u8]) -> Vec<Arrival> {
        let mut framer = Framer::default();
        bytes.iter().filter_map(|byte| framer.push(*byte)).collect()
    }

    #[test]
    fn packets_come_whole_or_not_at_all() {
        let body = |text: &str| Arrival::Packet(text.into());
        assert_eq!(packet(b"g"), b"$g#67");
        assert_eq!(
            arrivals(b"+$g#67-\x03$#00"),
            [Arrival::Ack, body("g"), Arrival::Nack, Arrival::Interrupt, body("")]
        );
        assert_eq!(arrivals(b"GET / HTTP/1.1\r\n"), []);
        assert_eq!(arrivals(b"$g#68$g#zz$g#67"), [Arrival::Damaged, Arrival::Damaged, body("g")]);
        assert_eq!(arrivals(b"$m12$g#67"), [body("g")], "one that was cut off");
        assert_eq!(arrivals(b"$g#6"), []);
        // Ctrl-C in binary data is data.
        assert_eq!(arrivals(&packet(b"X0,1:\x03")), [Arrival::Packet(b"X0,1:\x03".to_vec())]);
    }

    #[test]
    fn what_is_gathered_is_bounded() {
        let mut framer = Framer::default();
        framer.push(b'$');
        for _ in 0..10 * MAX_BODY {
            assert_eq!(framer.push(b'a'), None);
        }
        assert!(framer.body.len() <= MAX_BODY);
        assert_eq!(framer.push(b'#').or(framer.push(b'0')).or(framer.push(b'0')), Some(Arrival::Damaged));
    }
}
