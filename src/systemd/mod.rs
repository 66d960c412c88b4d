//! The service manager: telling it what goes on, and taking back what it has kept.
//!
//! Nothing here decides when to speak; the driver does. Nothing here fails the service: a manager that is gone, slow or
//! an old version is a problem in words.

pub(crate) mod activation;
pub(crate) mod job;
pub(crate) mod names;
pub(crate) mod notify;
pub(crate) mod store;
#[cfg(test)]
mod testing;
pub(crate) mod watchdog;
