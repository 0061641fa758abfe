//! Retries, the delivery log and endpoint health. The tests pass each message and move the clock.

mod breaker;
mod cancellation;
mod delivery_log;
mod disabling;
mod leases;
mod manual_retries;
mod messages;
mod pace;
mod probes;
mod resumes;
mod schedule;
mod unsent_messages;
mod write_units;
