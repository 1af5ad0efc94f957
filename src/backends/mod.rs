//! The host side of devices.

pub mod chardev;
pub mod output_file;
pub mod terminal;
