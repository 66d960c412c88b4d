//! How a listener is bound, as plain data.

/// How a socket is bound and listens.
///
/// An inherited socket was bound by another generation: what the kernel lets change afterwards is applied again, the
/// rest stays as it was bound. Each option says which.
///
/// ```
/// let options = handover::ListenOptions::new().backlog(1024).nodelay(false);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    pub(super) backlog: u32,
    pub(super) nodelay: bool,
    pub(super) only_v6: Option<bool>,
    pub(super) reuse_address: bool,
    pub(super) reuse_port: bool,
    pub(super) mode: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: BACKLOG,
            nodelay: true,
            only_v6: None,
            reuse_address: true,
            reuse_port: false,
            mode: None,
        }
    }
}

impl ListenOptions {
    /// The defaults that each option documents.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many connections may wait to be accepted. Default: as many as the kernel allows.
    ///
    /// The kernel clips it to `net.core.somaxconn` (listen(2)). Applied again to an inherited socket.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether accepted TCP connections send small writes at once (`TCP_NODELAY`, tcp(7)). Default: `true`.
    ///
    /// Set on the listener, from which Linux copies it to each connection. Applied again to an inherited socket.
    #[must_use]
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Whether a socket on an IPv6 address leaves IPv4 alone (`IPV6_V6ONLY`, ipv6(7)). Default: as
    /// `net.ipv6.bindv6only` says.
    ///
    /// Fixed when the socket is bound: claiming an inherited one that differs is an error.
    #[must_use]
    pub fn only_v6(mut self, only: bool) -> Self {
        self.only_v6 = Some(only);
        self
    }

    /// Whether a TCP listener may bind while connections of an earlier one linger (`SO_REUSEADDR`, socket(7)). Default:
    /// `true`.
    ///
    /// Applied again to an inherited socket. UDP sockets never get it: there it would let others take the datagrams.
    #[must_use]
    pub fn reuse_address(mut self, reuse: bool) -> Self {
        self.reuse_address = reuse;
        self
    }

    /// Whether several sockets may share one address, each with a queue of its own (`SO_REUSEPORT`, socket(7)).
    /// Default: `false`.
    ///
    /// A handover passes the very same socket on and does not need it. With it, closing one of the sockets resets the
    /// connections in its queue, and any process of the same user can take a part of the traffic. Fixed when the
    /// socket is bound: an inherited one stays as it is. For one queue per core give each socket a name of its own.
    #[must_use]
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// Permissions of a Unix socket's path, such as `0o660`. Default: `0o777` less the process's umask.
    ///
    /// Set before the socket listens, so nobody connects under other permissions. An inherited path keeps its own.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    pub(super) fn backlog_for_kernel(&self) -> i32 {
        i32::try_from(self.backlog).unwrap_or(i32::MAX)
    }
}

/// Connections that may wait to be accepted, before the kernel clips it to `net.core.somaxconn`.
const BACKLOG: u32 = i32::MAX as u32;
