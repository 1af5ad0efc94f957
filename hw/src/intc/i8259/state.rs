//! The registers of one 8259A and the cascade of two. Register names are the data sheet's.
//!
//! Deviation: an edge that was latched stays latched when the input falls before it is acknowledged (the chip then
//! answers with the spurious vector 7), so that a pulse from a timer that the host served late is not lost.

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::StateMachine;

/// Where an initialisation sequence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Init {
    #[default]
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Pic {
    /// Input levels.
    lines: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    elcr: u8,
    init: Init,
    /// ICW1: ICW4 will follow.
    wants_icw4: bool,
    /// ICW1: there is no slave, so no ICW3.
    single: bool,
    /// ICW1: all inputs are level-triggered.
    ltim: bool,
    /// ICW2, upper five bits.
    vector_base: u8,
    auto_eoi: bool,
    rotate_on_aeoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    /// OCW3: a read of the command port gives ISR, not IRR.
    read_isr: bool,
    /// OCW3: the next read polls.
    poll: bool,
    /// The input of the lowest priority, 7 unless rotated.
    lowest: u8,
}

impl Pic {
    /// All masked: the chip does nothing before it is initialised.
    fn power_on() -> Self {
        Self { lowest: 7, imr: 0xff, ..Self::default() }
    }

    fn level_triggered(&self, bit: u8) -> bool {
        self.ltim || self.elcr & bit != 0
    }

    fn set_input(&mut self, pin: u8, level: bool) {
        let bit = 1 << (pin & 7);
        let rising = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.level_triggered(bit) {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rising {
            self.irr |= bit;
        }
    }

    /// Inputs from highest to lowest priority.
    fn by_priority(&self) -> impl Iterator<Item = u8> {
        let lowest = self.lowest;
        (1..=8).map(move |i| (lowest + i) & 7)
    }

    /// The request that goes out, if any. `cascade`: the input behind which a slave sits, whose own requests the special
    /// fully nested mode lets through while one is in service.
    fn request(&self, cascade: Option<u8>) -> Option<u8> {
        let requests = self.irr & !self.imr;
        if requests == 0 {
            return None;
        }
        for pin in self.by_priority() {
            let bit = 1 << pin;
            let in_service = self.isr & bit != 0;
            if in_service && self.special_mask && self.imr & bit != 0 {
                // Special mask mode: a masked input in service blocks nobody.
                continue;
            }
            let nested_slave = self.special_fully_nested && cascade == Some(pin);
            if in_service && !self.special_mask && !nested_slave {
                return None;
            }
            if in_service && self.special_mask {
                // It blocks itself only.
                continue;
            }
            if requests & bit != 0 {
                return Some(pin);
            }
            if in_service {
                return None;
            }
        }
        None
    }

    /// An acknowledge cycle for `pin`.
    fn accept(&mut self, pin: u8) {
        let bit = 1 << pin;
        if !self.level_triggered(bit) {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_aeoi {
                self.lowest = pin;
            }
        } else {
            self.isr |= bit;
        }
    }

    /// The input of the highest priority that is in service.
    fn in_service(&self) -> Option<u8> {
        self.by_priority().find(|&p| self.isr & 1 << p != 0 && !(self.special_mask && self.imr & 1 << p != 0))
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1: everything starts over; the edge latches too, so an input must rise anew.
            *self = Self {
                lines: self.lines,
                elcr: self.elcr,
                init: Init::Icw2,
                wants_icw4: value & 1 != 0,
                single: value & 2 != 0,
                ltim: value & 8 != 0,
                imr: 0,
                ..Self::power_on()
            };
            for bit in (0..8).map(|p| 1u8 << p).filter(|b| self.lines & b != 0) {
                if self.level_triggered(bit) {
                    self.irr |= bit;
                }
            }
        } else if value & 0x08 != 0 {
            // OCW3.
            match value & 3 {
                2 => self.read_isr = false,
                3 => self.read_isr = true,
                _ => {}
            }
            self.poll = value & 4 != 0;
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let pin = value & 7;
        match value >> 5 {
            // Rotate in automatic EOI mode: clear, set.
            0 => self.rotate_on_aeoi = false,
            4 => self.rotate_on_aeoi = true,
            // Non-specific EOI; with rotation.
            n @ (1 | 5) => {
                if let Some(p) = self.in_service() {
                    self.isr &= !(1 << p);
                    if n == 5 {
                        self.lowest = p;
                    }
                }
            }
            // Specific EOI; with rotation.
            3 => self.isr &= !(1 << pin),
            7 => {
                self.isr &= !(1 << pin);
                self.lowest = pin;
            }
            // Set priority.
            6 => self.lowest = pin,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init {
            Init::Done => self.imr = value,
            Init::Icw2 => {
                self.vector_base = value & 0xf8;
                self.init = match (self.single, self.wants_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                };
            }
            // The wiring of a PC's cascade is fixed.
            Init::Icw3 => self.init = if self.wants_icw4 { Init::Icw4 } else { Init::Done },
            Init::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init = Init::Done;
            }
        }
    }
}

/// Master and slave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PicPair {
    chips: [Pic; 2],
}

impl Default for PicPair {
    fn default() -> Self {
        Self { chips: [Pic::power_on(), Pic::power_on()] }
    }
}

/// The master's input behind which the slave sits.
const CASCADE: u8 = 2;

impl PicPair {
    /// Drives input `pin`, 0 to 15; 2 is ignored.
    pub fn set_input(&mut self, pin: u8, level: bool) {
        match pin {
            CASCADE | 16.. => {}
            0..8 => self.chips[0].set_input(pin, level),
            _ => {
                self.chips[1].set_input(pin - 8, level);
                self.cascade();
            }
        }
    }

    /// The slave's output drives the master's input 2.
    fn cascade(&mut self) {
        let request = self.chips[1].request(None).is_some();
        // The slave drops its output during an acknowledge and raises it for the next request: an edge for the master.
        self.chips[0].set_input(CASCADE, request);
    }

    /// Level of INTR.
    pub fn output(&self) -> bool {
        self.chips[0].request(Some(CASCADE)).is_some()
    }

    /// The two acknowledge cycles: the vector, which is the spurious one (input 7) when the request has gone.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(pin) = self.chips[0].request(Some(CASCADE)) else {
            return self.chips[0].vector_base | 7;
        };
        self.chips[0].accept(pin);
        if pin != CASCADE {
            return self.chips[0].vector_base | pin;
        }
        let vector = match self.chips[1].request(None) {
            Some(p) => {
                self.chips[1].accept(p);
                self.chips[1].vector_base | p
            }
            None => self.chips[1].vector_base | 7,
        };
        self.chips[0].set_input(CASCADE, false);
        self.cascade();
        vector
    }

    /// Reads the command or, with `data`, the data port of chip 0 (master) or 1.
    pub fn read(&mut self, chip: usize, data: bool) -> u8 {
        let chip = chip & 1;
        if self.chips[chip].poll {
            self.chips[chip].poll = false;
            let request = self.chips[chip].request((chip == 0).then_some(CASCADE));
            return match request {
                Some(pin) => {
                    self.chips[chip].accept(pin);
                    self.cascade();
                    0x80 | pin
                }
                None => 0,
            };
        }
        let c = &self.chips[chip];
        match (data, c.read_isr) {
            (true, _) => c.imr,
            (false, true) => c.isr,
            (false, false) => c.irr,
        }
    }

    /// Writes the command or, with `data`, the data port of chip 0 (master) or 1.
    pub fn write(&mut self, chip: usize, data: bool, value: u8) {
        let chip = chip & 1;
        if data {
            self.chips[chip].write_data(value);
        } else {
            self.chips[chip].write_command(value);
        }
        self.cascade();
    }

    /// Edge (0) or level (1) for each input of chip 0 or 1.
    pub fn elcr(&self, chip: usize) -> u8 {
        self.chips[chip & 1].elcr
    }

    /// Sets edge or level; timer, keyboard, cascade, RTC and the FPU's input are edge for ever.
    pub fn set_elcr(&mut self, chip: usize, value: u8) {
        let chip = chip & 1;
        let mask = [0xf8, 0xde][chip];
        let c = &mut self.chips[chip];
        c.elcr = value & mask;
        let level = c.elcr;
        c.irr = c.irr & !level | c.lines & level;
        self.cascade();
    }
}

impl StateMachine for PicPair {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        // The inputs are driven by others, who keep what they drive.
        let lines = [self.chips[0].lines, self.chips[1].lines];
        *self = Self::default();
        for (c, l) in self.chips.iter_mut().zip(lines) {
            c.lines = l;
        }
    }
    fn check(&self) -> Result<(), &'static str> {
        if self.chips.iter().any(|c| c.lowest > 7 || c.vector_base & 7 != 0) {
            return Err("priority or vector base out of range");
        }
        Ok(())
    }
}
