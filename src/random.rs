//! Randomness. This module is the only one that reads the system's entropy.

/// Returns `N` unpredictable bytes.
///
/// # Panics
/// If the operating system has no entropy. Nothing can be done safely without it.
#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one that reads entropy"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Returns a number from 0 to 1, without 1.
#[expect(clippy::cast_precision_loss, reason = "a double holds 53 bits exactly")]
pub fn unit_f64() -> f64 {
    (u64::from_le_bytes(bytes()) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Returns a request id: 32 lowercase hex digits.
pub fn request_id() -> String {
    hex::encode(bytes::<16>())
}
