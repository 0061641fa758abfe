//! Failures of this process, in which an endpoint has no part.

use std::io;

use nano_webhooks_core::delivery::failure::Failure;

/// Why an attempt was not made, or ended without a result, for a reason of this process. It says
/// nothing about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalFailure {
    /// As many attempts were in progress as the process has file descriptors for.
    #[error("no slot for an attempt was free")]
    NoAttemptSlot,
    /// There was no slot for the lookup, or another account needed it.
    #[error("no slot for a lookup was free")]
    NoLookupSlot,
    /// There was no socket for the lookup.
    #[error("no socket for a lookup could be opened")]
    NoSocket,
    /// The operating system refused a socket.
    #[error("out of file descriptors, ports or memory (os error {0})")]
    OutOfResources(i32),
}

/// Error numbers by which an operating system refuses a socket for a reason of this process or
/// machine (the manual pages of `socket`, `connect` and `epoll_ctl`). Where Linux and macOS differ,
/// both numbers are here.
const OUT_OF_RESOURCES: [i32; 7] = [
    12,  // ENOMEM
    23,  // ENFILE
    24,  // EMFILE
    28,  // ENOSPC
    55,  // ENOBUFS on macOS
    105, // ENOBUFS on Linux
    99,  // EADDRNOTAVAIL on Linux: no local port is free
];

impl LocalFailure {
    /// The failure of this process that caused an error; `None` if there is none.
    pub(super) fn from_io(error: &io::Error) -> Option<Self> {
        match error.raw_os_error() {
            Some(number) if OUT_OF_RESOURCES.contains(&number) => {
                Some(Self::OutOfResources(number))
            }
            _ => None,
        }
    }
}

/// Why an exchange has no status code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    /// The endpoint, its name or the target policy is the reason.
    Endpoint(Failure),
    /// This process is the reason.
    Local(LocalFailure),
}

impl From<Failure> for ExchangeError {
    fn from(failure: Failure) -> Self {
        Self::Endpoint(failure)
    }
}

impl From<LocalFailure> for ExchangeError {
    fn from(failure: LocalFailure) -> Self {
        Self::Local(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_errors_are_local() {
        for (number, is_local) in [
            (24, true),   // EMFILE
            (12, true),   // ENOMEM
            (13, false),  // EACCES
            (101, false), // ENETUNREACH
            (104, false), // ECONNRESET
            (111, false), // ECONNREFUSED
        ] {
            let error = io::Error::from_raw_os_error(number);
            let expected = is_local.then_some(LocalFailure::OutOfResources(number));
            assert_eq!(LocalFailure::from_io(&error), expected, "{number}");
        }
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(LocalFailure::from_io(&eof), None);
    }
}
