//! What a machine can do with any of its devices: reset it, save it, restore it.
//!
//! Saved state is one [`Section`] a device: a name, a version and bytes. A device saves its state machine with
//! [`encode`] (postcard: compact, no self-description, so every change of the struct is a new version) and keeps the
//! structs of older versions it still reads. A snapshot is input from outside: [`decode`] bounds what it allocates by the
//! bytes that are there, and `restore` checks every value that the device indexes or divides with before it accepts any.

use std::sync::Mutex;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::lock;

/// The saved state of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The device's [`Device::name`].
    pub name: String,
    /// Version of the bytes' layout, counted by the device.
    pub version: u16,
    /// The state.
    pub data: Vec<u8>,
}

/// Why saved state was not taken. The device is unchanged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// Written by a version of the device that this one does not know.
    #[error("state of {name} has version {version}, which is not known here")]
    Version {
        /// The section's name.
        name: String,
        /// The section's version.
        version: u16,
    },
    /// Cut off, or not what the device writes.
    #[error("state of {name} is damaged: {what}")]
    Damaged {
        /// The section's name.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// A device as the machine holds it: the wiring around its state machine.
pub trait Device: Send + Sync {
    /// Unique in the machine and stable across versions, such as `serial0`.
    fn name(&self) -> &str;
    /// The state after power-on. Interrupt lines and timers follow.
    fn reset(&self);
    /// The whole state, taken while no vCPU runs and the clock stands.
    fn save(&self) -> Section;
    /// Takes over a state that [`Self::save`] made, or an older version did, and drives lines and timers accordingly.
    fn restore(&self, section: &Section) -> Result<(), StateError>;
}

/// The state machine of a device: plain data.
pub trait StateMachine: Serialize + DeserializeOwned + Send {
    /// Version of the encoded layout.
    const VERSION: u16;
    /// The state after power-on.
    fn reset(&mut self);
    /// Refuses values, from a snapshot, that the device cannot work with. Every index, length and divisor is checked here.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Wiring around one state machine; a [`Device`] by that.
pub trait Wired: Send + Sync {
    /// What is wired.
    type State: StateMachine;
    /// See [`Device::name`].
    fn name(&self) -> &str;
    /// The state machine.
    fn state(&self) -> &Mutex<Self::State>;
    /// Drives interrupt lines, timers and whatever else follows from the state. Called under the device's lock.
    fn drive(&self, state: &mut Self::State);
}

impl<W: Wired> Device for W {
    fn name(&self) -> &str {
        Wired::name(self)
    }
    fn reset(&self) {
        let mut state = lock(self.state());
        state.reset();
        self.drive(&mut state);
    }
    fn save(&self) -> Section {
        encode(Wired::name(self), W::State::VERSION, &*lock(self.state()))
    }
    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let new: W::State = decode(section, W::State::VERSION)?;
        new.check().map_err(|what| damaged(section, what))?;
        let mut state = lock(self.state());
        *state = new;
        self.drive(&mut state);
        Ok(())
    }
}

/// Encodes a state as section `name`.
pub fn encode<T: Serialize>(name: &str, version: u16, state: &T) -> Section {
    // Writing plain data to a vector cannot fail; an unencodable type would be a mistake in the device that its test shows.
    let data =
        postcard::to_stdvec(state).unwrap_or_else(|e| unreachable!("state of {name} cannot be encoded: {e}"));
    Section { name: name.to_owned(), version, data }
}

/// Decodes what [`encode`] wrote, if it has `version` and nothing follows.
pub fn decode<T: DeserializeOwned>(section: &Section, version: u16) -> Result<T, StateError> {
    if section.version != version {
        return Err(StateError::Version { name: section.name.clone(), version: section.version });
    }
    match postcard::take_from_bytes(&section.data) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(damaged(section, "more bytes than the state has")),
        Err(e) => Err(damaged(section, &e.to_string())),
    }
}

/// A [`StateError::Damaged`] for `section`.
pub fn damaged(section: &Section, what: &str) -> StateError {
    StateError::Damaged { name: section.name.clone(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_it_did_not_write() {
        let state = (7u8, vec![1u32, 70_000], Some(-3i64));
        let s = encode("thing", 2, &state);
        assert_eq!(decode::<(u8, Vec<u32>, Option<i64>)>(&s, 2), Ok(state));
        assert!(matches!(decode::<u8>(&s, 1), Err(StateError::Version { version: 2, .. })));
        assert!(matches!(decode::<u8>(&s, 2), Err(StateError::Damaged { .. })), "bytes left over");
        for n in 0..s.data.len() {
            let cut = Section { data: s.data[..n].to_vec(), ..s.clone() };
            assert!(decode::<(u8, Vec<u32>, Option<i64>)>(&cut, 2).is_err());
        }
        let huge = Section { data: vec![0, 0xff, 0xff, 0xff, 0xff, 0xf], ..s };
        assert!(decode::<(u8, Vec<u32>, Option<i64>)>(&huge, 2).is_err(), "a length is not believed");
    }
}
