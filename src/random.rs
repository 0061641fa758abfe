//! Randomness: the one reader of the system's entropy. What decides takes a number from here as a parameter.

/// `N` bytes that nobody can guess.
///
/// # Panics
/// If the operating system has no entropy to give, which leaves nothing safe to do.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of entropy"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A number from 0 up to, but without, 1.
#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are what a double holds exactly"
)]
pub fn unit_f64() -> f64 {
    (u64::from_le_bytes(bytes()) >> 11) as f64 / (1_u64 << 53) as f64
}

/// An identifier of a request: 32 lower-case hex digits.
pub fn request_id() -> String {
    hex::encode(bytes::<16>())
}
