//! A queue of due deliveries that is fair to webhooks: each webhook has a lane, and a lane whose
//! table partition refuses writes takes nothing from the others.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use nano_webhooks_core::{account_id::AccountId, webhook::WebhookId};

use crate::store::due_index::DueDelivery;

/// How many deliveries of a webhook wait at the same time. The others of its backlog are left over.
const LANE_CAPACITY: usize = 2_000;
/// How many deliveries wait at the same time. Nothing more is read until there is room.
const CAPACITY: usize = 50_000;
/// How many deliveries of a webhook are taken at the same time. DynamoDB accepts 1,000 write units
/// a second for the partition of a webhook, and a write takes about 5 ms.
const MAX_IN_FLIGHT_PER_WEBHOOK: usize = 8;
/// How long a lane rests after a refusal; each further refusal doubles the time.
const BASE_REST: Duration = Duration::from_millis(50);
/// After how many refusals without a success between them a lane is closed. Refusals of the same
/// moment count as one.
const REFUSALS_TO_CLOSE: u32 = 5;

/// A webhook of an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LaneKey {
    pub account: AccountId,
    pub webhook: WebhookId,
}

impl LaneKey {
    fn new(due: &DueDelivery) -> Self {
        Self {
            account: due.key.account.clone(),
            webhook: due.key.webhook,
        }
    }
}

/// What became of an offered delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// It waits in its lane.
    Queued,
    /// Its lane is full.
    LeftOver,
    /// Its lane is closed.
    Refused,
}

/// The due deliveries of a sweep. Times are since the start of the sweep.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    lanes: HashMap<LaneKey, Lane>,
    /// The lanes that can go on, in the order in which they take turns.
    turns: VecDeque<LaneKey>,
    /// The lanes that rest, and until when.
    resting: BinaryHeap<Reverse<(Duration, LaneKey)>>,
    /// How many deliveries wait in all lanes.
    waiting: usize,
    /// How often all due deliveries were read before.
    pass: usize,
}

#[derive(Debug)]
struct Lane {
    waiting: VecDeque<DueDelivery>,
    in_flight: usize,
    max_in_flight: usize,
    /// Whether the lane is among those that take turns.
    has_turn: bool,
    /// Refusals since the last success.
    refusals: u32,
    /// When the lane may go on after a refusal.
    rests_until: Duration,
    /// The pass in which the lane was closed.
    closed_in: Option<usize>,
    /// How many deliveries were refused: those whose write was, and those of a closed lane.
    refused: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: 0,
            max_in_flight: MAX_IN_FLIGHT_PER_WEBHOOK,
            has_turn: false,
            refusals: 0,
            rests_until: Duration::ZERO,
            closed_in: None,
            refused: 0,
        }
    }
}

impl Lane {
    fn can_go_on(&self, now: Duration) -> bool {
        !self.waiting.is_empty() && self.in_flight < self.max_in_flight && self.rests_until <= now
    }
}

impl FairQueue {
    /// Adds a delivery to the lane of its webhook.
    pub(super) fn offer(&mut self, due: DueDelivery, now: Duration) -> Offer {
        let key = LaneKey::new(&due);
        let lane = self.lanes.entry(key.clone()).or_default();
        if let Some(closed_in) = lane.closed_in {
            // A later pass reads the same deliveries again.
            if closed_in == self.pass {
                lane.refused += 1;
            }
            return Offer::Refused;
        }
        if lane.waiting.len() >= LANE_CAPACITY {
            return Offer::LeftOver;
        }
        lane.waiting.push_back(due);
        self.waiting += 1;
        self.give_turn(key, now);
        Offer::Queued
    }

    /// Takes the next delivery of the lane whose turn it is.
    pub(super) fn take(&mut self, now: Duration) -> Option<DueDelivery> {
        self.end_rests(now);
        while let Some(key) = self.turns.pop_front() {
            let lane = self.lanes.get_mut(&key)?;
            lane.has_turn = false;
            // Meanwhile, the lane may rest or be closed.
            if !lane.can_go_on(now) {
                continue;
            }
            let due = lane.waiting.pop_front();
            lane.in_flight += 1;
            self.waiting -= 1;
            self.give_turn(key, now);
            return due;
        }
        None
    }

    /// Records that a taken delivery was handled.
    pub(super) fn complete(&mut self, due: &DueDelivery, now: Duration) {
        let key = LaneKey::new(due);
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.in_flight -= 1;
            lane.refusals = 0;
            self.give_turn(key, now);
        }
    }

    /// Records that the write of a taken delivery was refused. Its lane rests and then goes on with
    /// fewer deliveries at a time, or is closed for the rest of the sweep.
    pub(super) fn refuse(&mut self, due: &DueDelivery, now: Duration) {
        let key = LaneKey::new(due);
        let Some(lane) = self.lanes.get_mut(&key) else {
            return;
        };
        lane.in_flight -= 1;
        lane.refused += 1;
        if lane.rests_until > now || lane.closed_in.is_some() {
            return;
        }
        lane.rests_until = now + BASE_REST * 2_u32.pow(lane.refusals);
        lane.refusals += 1;
        lane.max_in_flight = (lane.max_in_flight / 2).max(1);
        if lane.refusals < REFUSALS_TO_CLOSE {
            self.resting.push(Reverse((lane.rests_until, key)));
            return;
        }
        lane.closed_in = Some(self.pass);
        lane.refused += lane.waiting.len();
        self.waiting -= lane.waiting.len();
        lane.waiting.clear();
    }

    /// Lets the lanes go on whose rest is over.
    fn end_rests(&mut self, now: Duration) {
        while let Some(Reverse((rests_until, _))) = self.resting.peek()
            && *rests_until <= now
            && let Some(Reverse((_, key))) = self.resting.pop()
        {
            self.give_turn(key, now);
        }
    }

    /// Adds a lane to those that take turns, if it can go on.
    fn give_turn(&mut self, key: LaneKey, now: Duration) {
        if let Some(lane) = self.lanes.get_mut(&key)
            && !lane.has_turn
            && lane.can_go_on(now)
        {
            lane.has_turn = true;
            self.turns.push_back(key);
        }
    }

    /// Whether more deliveries can be offered.
    pub(super) const fn has_room(&self) -> bool {
        self.waiting < CAPACITY
    }

    /// When the next rest ends, if a delivery waits for it.
    pub(super) fn next_rest_ends(&self) -> Option<Duration> {
        if self.waiting == 0 {
            return None;
        }
        let Reverse((rests_until, _)) = self.resting.peek()?;
        Some(*rests_until)
    }

    /// Prepares for reading all due deliveries once more. Closed lanes stay closed.
    pub(super) fn start_pass(&mut self) {
        self.pass += 1;
        for lane in self.lanes.values_mut() {
            if lane.closed_in.is_none() {
                lane.refused = 0;
            }
        }
    }

    /// How many deliveries of each webhook were refused, the most first.
    pub(super) fn refused(&self) -> Vec<(LaneKey, usize)> {
        let mut refused = Vec::new();
        for (key, lane) in &self.lanes {
            if lane.refused > 0 {
                refused.push((key.clone(), lane.refused));
            }
        }
        refused
            .sort_by(|(key, count), (other_key, other)| other.cmp(count).then(key.cmp(other_key)));
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_webhooks_core::{delivery::DeliveryKey, event::EventId, timestamp::Timestamp};

    const NOW: Duration = Duration::ZERO;

    fn due(account: &str) -> DueDelivery {
        let key = DeliveryKey {
            account: AccountId::parse(account).unwrap(),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        };
        DueDelivery::new(key, 1, Timestamp::from_millis(0), Timestamp::from_millis(0))
    }

    fn offer(queue: &mut FairQueue, account: &str, count: usize) {
        for _ in 0..count {
            assert_eq!(queue.offer(due(account), NOW), Offer::Queued);
        }
    }

    /// The accounts of the deliveries that can be taken.
    fn take_all(queue: &mut FairQueue, now: Duration) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some(due) = queue.take(now) {
            taken.push(due.key.account.to_string());
        }
        taken
    }

    fn refused(queue: &FairQueue) -> Vec<(String, usize)> {
        let refused = queue.refused().into_iter();
        refused
            .map(|(key, count)| (key.account.to_string(), count))
            .collect()
    }

    /// Takes a delivery and refuses it until its lane is closed. Returns the time.
    fn close(queue: &mut FairQueue, account: &str) -> Duration {
        let mut now = NOW;
        for _ in 0..REFUSALS_TO_CLOSE {
            let taken = queue.take(now).unwrap();
            assert_eq!(taken.key.account.as_str(), account);
            queue.refuse(&taken, now);
            now = queue.next_rest_ends().unwrap_or(now);
        }
        now
    }

    #[test]
    fn lanes_take_turns_within_limit() {
        let mut queue = FairQueue::default();
        offer(&mut queue, "acme", MAX_IN_FLIGHT_PER_WEBHOOK + 1);
        offer(&mut queue, "globex", 2);
        let taken = take_all(&mut queue, NOW);
        assert_eq!(taken[..5], ["acme", "globex", "acme", "globex", "acme"]);
        assert_eq!(taken.len(), MAX_IN_FLIGHT_PER_WEBHOOK + 2);
        queue.complete(&due("acme"), NOW);
        assert_eq!(take_all(&mut queue, NOW), ["acme"]);
    }

    #[test]
    fn full_lane_takes_no_room_of_others() {
        let mut queue = FairQueue::default();
        offer(&mut queue, "acme", LANE_CAPACITY);
        assert_eq!(queue.offer(due("acme"), NOW), Offer::LeftOver);
        offer(&mut queue, "globex", 1);
        for number in 2..=CAPACITY / LANE_CAPACITY {
            assert!(queue.has_room());
            let account = format!("account-{number}");
            for _ in 0..LANE_CAPACITY {
                queue.offer(due(&account), NOW);
            }
        }
        assert!(!queue.has_room());
    }

    #[test]
    fn refused_lane_rests_then_goes_on_slower() {
        let mut queue = FairQueue::default();
        offer(&mut queue, "acme", 20);
        let taken = take_all(&mut queue, NOW).len();
        for _ in 0..taken {
            queue.refuse(&due("acme"), NOW);
        }
        offer(&mut queue, "globex", 1);
        assert_eq!(take_all(&mut queue, NOW), ["globex"]);
        assert_eq!(queue.next_rest_ends(), Some(BASE_REST));
        let resumed = take_all(&mut queue, BASE_REST);
        assert_eq!(resumed.len(), MAX_IN_FLIGHT_PER_WEBHOOK / 2);
        assert_eq!(
            refused(&queue),
            [("acme".to_owned(), MAX_IN_FLIGHT_PER_WEBHOOK)],
            "refusals of the same moment do not close the lane"
        );
    }

    #[test]
    fn success_ends_series_of_refusals() {
        let mut queue = FairQueue::default();
        offer(&mut queue, "acme", 40);
        let mut now = NOW;
        for _ in 0..2 * REFUSALS_TO_CLOSE {
            let taken = queue.take(now).unwrap();
            queue.refuse(&taken, now);
            now = queue.next_rest_ends().unwrap();
            let taken = queue.take(now).unwrap();
            queue.complete(&taken, now);
        }
        assert_eq!(queue.take(now).unwrap().key.account.as_str(), "acme");
    }

    /// Every delivery of a closed lane counts once, also if a later pass reads it again.
    #[test]
    fn closed_lane_counts_each_delivery_once() {
        let mut queue = FairQueue::default();
        offer(&mut queue, "acme", 10);
        let now = close(&mut queue, "acme");
        assert_eq!(queue.offer(due("acme"), now), Offer::Refused);
        assert_eq!(refused(&queue), [("acme".to_owned(), 11)]);
        queue.start_pass();
        for _ in 0..11 {
            assert_eq!(queue.offer(due("acme"), now), Offer::Refused);
        }
        assert_eq!(refused(&queue), [("acme".to_owned(), 11)]);
        offer(&mut queue, "globex", 1);
        assert_eq!(take_all(&mut queue, now), ["globex"]);
        assert_eq!(queue.next_rest_ends(), None);
    }

    /// A pass that follows reads a refused delivery of an open lane again.
    #[test]
    fn next_pass_retries_refused_delivery() {
        let mut queue = FairQueue::default();
        offer(&mut queue, "acme", 1);
        let taken = queue.take(NOW).unwrap();
        queue.refuse(&taken, NOW);
        queue.start_pass();
        offer(&mut queue, "acme", 1);
        assert_eq!(take_all(&mut queue, BASE_REST), ["acme"]);
        assert_eq!(refused(&queue), []);
    }
}
