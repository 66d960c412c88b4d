//! Everything unsafe: system calls that std, nix and tokio do not have, behind functions over owned descriptors.

#[cfg(feature = "pool")]
pub(crate) mod activated;
pub(crate) mod descriptors;
pub(crate) mod environment;
#[cfg(feature = "pool")]
pub(crate) mod exec;
pub(crate) mod group;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod queue;
pub(crate) mod signals;
#[cfg(feature = "pool")]
pub(crate) mod steering;
#[cfg(test)]
pub(crate) mod testing;
