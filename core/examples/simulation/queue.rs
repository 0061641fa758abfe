//! The retry queue: the messages that workers can receive now.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::scenario::QueueOrder;

/// The messages of a batch.
const BATCH_SIZE: usize = 10;
/// A webhook with more than one in so many messages in flight is a noisy neighbor. Amazon SQS does
/// not document its limit.
const NOISY_DIVISOR: usize = 10;

/// A message that names a delivery.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub account: usize,
    pub delivery: usize,
    /// The attempts when the message was sent.
    pub attempt_count: u32,
}

/// The messages in order, with a group for each account.
#[derive(Debug)]
pub struct MessageQueue {
    order: QueueOrder,
    groups: HashMap<usize, VecDeque<(u64, Message)>>,
    /// The number of the first message of each group, and the account.
    heads: BTreeSet<(u64, usize)>,
    last_number: u64,
    in_flight: HashMap<usize, usize>,
    total_in_flight: usize,
}

impl MessageQueue {
    pub fn new(order: QueueOrder) -> Self {
        Self {
            order,
            groups: HashMap::new(),
            heads: BTreeSet::new(),
            last_number: 0,
            in_flight: HashMap::new(),
            total_in_flight: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    pub fn push(&mut self, message: Message) {
        self.last_number += 1;
        let group = self.groups.entry(message.account).or_default();
        if group.is_empty() {
            self.heads.insert((self.last_number, message.account));
        }
        group.push_back((self.last_number, message));
    }

    /// Receives a batch of messages. They are in flight until [`Self::delete`].
    pub fn receive(&mut self) -> Vec<Message> {
        let mut batch = Vec::with_capacity(BATCH_SIZE);
        while batch.len() < BATCH_SIZE
            && let Some(head) = self.next_head()
        {
            batch.push(self.pop(head));
        }
        batch
    }

    /// Deletes messages that were received.
    pub fn delete(&mut self, accounts: &[usize]) {
        for account in accounts {
            self.total_in_flight -= 1;
            *self.in_flight.entry(*account).or_default() -= 1;
        }
    }

    fn next_head(&self) -> Option<(u64, usize)> {
        if self.order == QueueOrder::Fair {
            let quiet = self
                .heads
                .iter()
                .find(|(_, account)| !self.is_noisy(*account));
            if let Some(head) = quiet {
                return Some(*head);
            }
        }
        self.heads.first().copied()
    }

    fn is_noisy(&self, account: usize) -> bool {
        let in_flight = self.in_flight.get(&account).copied().unwrap_or_default();
        in_flight * NOISY_DIVISOR > self.total_in_flight
    }

    fn pop(&mut self, head: (u64, usize)) -> Message {
        self.heads.remove(&head);
        let (_, account) = head;
        let group = self.groups.get_mut(&account).expect("a head has a group");
        let (_, message) = group.pop_front().expect("a head has a message");
        if let Some((number, _)) = group.front() {
            self.heads.insert((*number, account));
        }
        self.total_in_flight += 1;
        *self.in_flight.entry(account).or_default() += 1;
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once a message of an account is in flight, the messages of another account come first,
    /// unless the order is by age.
    #[test]
    fn noisy_account_comes_last() {
        for (order, expected) in [
            (QueueOrder::Fair, [1, 2, 1, 1, 1, 1, 1, 1, 1, 1]),
            (QueueOrder::Oldest, [1; 10]),
        ] {
            let mut queue = MessageQueue::new(order);
            for account in [1; 20].into_iter().chain([2]) {
                queue.push(Message {
                    account,
                    delivery: 0,
                    attempt_count: 0,
                });
            }
            let batch = queue.receive();
            let accounts: Vec<_> = batch.iter().map(|message| message.account).collect();
            assert_eq!(accounts, expected, "{order:?}");
            queue.delete(&accounts);
            assert_eq!(queue.total_in_flight, 0);
        }
    }
}
