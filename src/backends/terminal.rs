//! The user's terminal: raw while a guest uses it, and as it was on every way out.
//!
//! A guest's console wants every key as it is typed, Ctrl-C among them. The settings that were found are kept
//! in one place for the process, so that whoever ends it can put them back: the [`RawMode`] guard when it is
//! dropped, and a panic hook, which does so before the panic's message is printed.

use std::io::{IsTerminal, stdin};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcsetattr,
};

/// The settings to go back to, and those in force; `None` while the terminal is as it was found.
static CHANGED: Mutex<Option<(Termios, Termios)>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// The terminal on standard input is in raw mode while this lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal into raw mode; with `signals`, Ctrl-C and Ctrl-Z keep their meaning. `None` if
    /// standard input is no terminal.
    pub fn enter(signals: bool) -> Option<Self> {
        if !stdin().is_terminal() {
            return None;
        }
        let found = tcgetattr(stdin()).ok()?;
        let mut raw = found.clone();
        raw.input_modes -= InputModes::IGNBRK
            | InputModes::BRKINT
            | InputModes::PARMRK
            | InputModes::ISTRIP
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::ICRNL
            | InputModes::IXON;
        // Line feeds of the emulator's own messages still return the carriage.
        raw.output_modes |= OutputModes::OPOST;
        raw.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
        raw.local_modes.set(LocalModes::ISIG, signals && found.local_modes.contains(LocalModes::ISIG));
        raw.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
        raw.control_modes |= ControlModes::CS8;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        *CHANGED.lock().unwrap_or_else(PoisonError::into_inner) = Some((found, raw));
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                previous(panic);
            }));
        });
        Some(RawMode(()))
    }

    /// Puts the terminal into raw mode again, after the process was stopped and somebody else used it.
    pub fn enter_again(&self) {
        if let Some((_, raw)) = CHANGED.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // A terminal that has gone needs no mode.
            let _ = tcsetattr(stdin(), OptionalActions::Now, raw);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was found.
pub fn restore() {
    if let Some((found, _)) = CHANGED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Output still on its way is written under the old settings; a terminal that has gone needs none.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &found);
    }
}
