//! The device's end of the link.
