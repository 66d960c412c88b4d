//! The units of `examples/systemd` under real systemd, 252 and 257, with real `systemctl`.
//!
//! Each test boots a machine of its own in fresh namespaces, which takes less than a second. That needs root, a cgroup2
//! file system, and mmdebstrap with a network for the first run; where there is none, each test says that it is skipped.

mod app;
mod machine;
mod oddities;
mod pool;
mod reload;
mod restart;
mod root;
mod sockets;
mod takeover;
mod units;
mod user;

/// Each test on both systemds.
macro_rules! on_each_systemd {
    ($($test:ident)*) => {
        mod on_257 {
            $(#[test] fn $test() { crate::machine::on(crate::root::Release::Trixie, super::$test); })*
        }
        mod on_252 {
            $(#[test] fn $test() { crate::machine::on(crate::root::Release::Bookworm, super::$test); })*
        }
    };
}
use on_each_systemd;
