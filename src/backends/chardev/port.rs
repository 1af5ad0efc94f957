//! The half of a character backend that the device sees.
//!
//! A device writes from a vCPU thread, under its own lock, and must not wait for the host. So a write goes to
//! a bounded queue and wakes the main loop, whose [`Endpoint`](super::endpoint::Endpoint) moves it on. What
//! does not fit stays in the device, whose guest sees a busy transmitter, until the endpoint has made room.
//!
//! Lock order: the device's lock may be held when the queue's is taken; the device is called with neither
//! held.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tessera_hw_core::backend::{CharBackend, CharFrontend};
use tessera_hw_core::lock;

use crate::event_loop::Waker;

/// The most output that waits for the host, in bytes.
const QUEUE_LIMIT: usize = 64 << 10;

/// A queue between a device and the main loop.
pub struct Port {
    queue: Mutex<Queue>,
    frontend: OnceLock<Weak<dyn CharFrontend>>,
    /// The device was full and has room again.
    input_wanted: AtomicBool,
    waker: Waker,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// A write was cut short, so the device waits for [`CharFrontend::writable`].
    starved: bool,
    /// Nobody is there: output is dropped.
    discards: bool,
}

impl Port {
    /// An empty queue whose writer wakes the main loop.
    pub fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Port {
            queue: Mutex::default(),
            frontend: OnceLock::new(),
            input_wanted: AtomicBool::new(false),
            waker,
        })
    }

    /// The device, once it is attached and while it exists.
    pub fn frontend(&self) -> Option<Arc<dyn CharFrontend>> {
        self.frontend.get()?.upgrade()
    }

    /// Drops output from now on, or keeps it again.
    pub fn set_discards(&self, discards: bool) {
        let starved = {
            let mut queue = lock(&self.queue);
            queue.discards = discards;
            if discards {
                queue.bytes.clear();
            }
            discards && std::mem::take(&mut queue.starved)
        };
        if starved && let Some(frontend) = self.frontend() {
            frontend.writable();
        }
    }

    /// Whether output waits.
    pub fn has_output(&self) -> bool {
        !lock(&self.queue).bytes.is_empty()
    }

    /// Offers what waits to `write`, which says how much of it went; then lets a device that waits for room
    /// go on.
    pub fn drain<E>(&self, mut write: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        // Taken out, so that the device can go on writing while the host does.
        let mut bytes = std::mem::take(&mut lock(&self.queue).bytes);
        let mut outcome = Ok(());
        while !bytes.is_empty() {
            match write(bytes.as_slices().0) {
                Ok(0) => break,
                Ok(count) => drop(bytes.drain(..count)),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let starved = {
            let mut queue = lock(&self.queue);
            if !queue.discards {
                // What came meanwhile goes behind what is left.
                bytes.append(&mut queue.bytes);
                queue.bytes = bytes;
            }
            queue.bytes.len() < QUEUE_LIMIT && std::mem::take(&mut queue.starved)
        };
        if starved && let Some(frontend) = self.frontend() {
            frontend.writable();
        }
        outcome
    }

    /// Whether the device has asked for more input since the last call.
    pub fn take_input_wanted(&self) -> bool {
        self.input_wanted.swap(false, Ordering::AcqRel)
    }
}

impl CharBackend for Port {
    fn write(&self, data: &[u8]) -> usize {
        let mut queue = lock(&self.queue);
        if queue.discards {
            return data.len();
        }
        let room = QUEUE_LIMIT.saturating_sub(queue.bytes.len());
        let taken = data.len().min(room);
        let first = queue.bytes.is_empty();
        queue.bytes.extend(&data[..taken]);
        queue.starved |= taken < data.len();
        drop(queue);
        if first {
            self.waker.wake();
        }
        taken
    }

    fn attach(&self, frontend: Weak<dyn CharFrontend>) {
        // A board attaches each backend to one device, once.
        let _ = self.frontend.set(frontend);
    }

    fn frontend_ready(&self) {
        self.input_wanted.store(true, Ordering::Release);
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    struct Device(AtomicU32);

    impl CharFrontend for Device {
        fn receive(&self, data: &[u8]) -> usize {
            data.len()
        }
        fn can_receive(&self) -> usize {
            1
        }
        fn writable(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_queue_holds_the_device_up_until_there_is_room() {
        let port = Port::new(Waker::new().unwrap());
        let device = Arc::new(Device(AtomicU32::new(0)));
        let weak = Arc::downgrade(&device);
        port.attach(weak);
        assert_eq!(port.write(&vec![b'a'; QUEUE_LIMIT - 1]), QUEUE_LIMIT - 1);
        assert_eq!(port.write(b"bc"), 1);
        assert_eq!(port.write(b"c"), 0);
        // The host takes nothing: the device still waits.
        port.drain(|_| Ok::<_, ()>(0)).unwrap();
        assert_eq!(device.0.load(Ordering::Relaxed), 0);
        let mut gone = Vec::new();
        let take = |bytes: &[u8]| {
            let count = bytes.len().min(1000);
            gone.extend_from_slice(&bytes[..count]);
            Ok::<_, ()>(count)
        };
        port.drain(take).unwrap();
        assert_eq!((gone.len(), gone[QUEUE_LIMIT - 1]), (QUEUE_LIMIT, b'b'));
        assert_eq!(device.0.load(Ordering::Relaxed), 1);
        assert!(!port.has_output());
    }

    #[test]
    fn a_failed_write_keeps_the_order() {
        let port = Port::new(Waker::new().unwrap());
        port.write(b"one two");
        let mut calls = 0;
        let failed = port.drain(|_| {
            calls += 1;
            if calls == 1 { Ok(4) } else { Err("full") }
        });
        assert_eq!(failed, Err("full"));
        port.write(b" three");
        let mut rest = Vec::new();
        port.drain(|bytes| {
            rest.extend_from_slice(bytes);
            Ok::<_, ()>(bytes.len())
        })
        .unwrap();
        assert_eq!(rest, b"two three");
    }

    #[test]
    fn without_anybody_there_output_is_dropped() {
        let port = Port::new(Waker::new().unwrap());
        port.set_discards(true);
        assert_eq!(port.write(&vec![0; 2 * QUEUE_LIMIT]), 2 * QUEUE_LIMIT);
        assert!(!port.has_output());
    }
}
