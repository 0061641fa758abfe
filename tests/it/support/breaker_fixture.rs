//! A deployment of two processes whose endpoint does not respond until the test revives it.

use std::time::Duration;

use nano_webhooks::{
    clock::Deadline,
    dispatch::{Dispatcher, InFlightLimiter},
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState, scheduled_retry::ScheduledRetry, wait_reason::WaitReason},
    webhook::WebhookId,
};

use super::{
    permissions::{RETRY, run_as},
    retry_fixture::RetryFixture,
    stream::{dispatch_batch, insert_record, job_image},
};

/// How many failures open the breaker.
const FAILURES: usize = 5;

pub struct BreakerFixture {
    pub fixture: RetryFixture,
    pub webhook: WebhookId,
    /// They share the tables and the clock, and nothing else.
    processes: [Dispatcher; 2],
    messages: Vec<ScheduledRetry>,
    events: usize,
}

impl BreakerFixture {
    /// An endpoint whose breaker opened ten seconds ago. All its deliveries wait.
    pub async fn open() -> Self {
        let fixture = RetryFixture::new(&["5s"; 15].join(",")).await;
        let webhook = fixture.subscribe("/dead").await;
        let other_process = Dispatcher {
            limiter: InFlightLimiter::default(),
            ..fixture.dispatcher.clone()
        };
        let processes = [fixture.dispatcher.clone(), other_process];
        let mut opened = Self {
            fixture,
            webhook,
            processes,
            messages: Vec::new(),
            events: 0,
        };
        for _ in 0..FAILURES {
            opened.end_job().await;
            opened.receive_messages().await;
            opened.fixture.clock.advance(Duration::from_secs(10));
            opened.receive_messages().await;
            if opened.fixture.health(webhook).await.is_open() {
                break;
            }
        }
        assert!(opened.fixture.health(webhook).await.is_open());
        for _ in 0..3 {
            opened.end_job().await;
        }
        opened.fixture.clock.advance(Duration::from_secs(10));
        opened.receive_messages().await;
        opened.fixture.receiver.clear();
        opened
    }

    /// Ends a job in the next process.
    pub async fn end_job(&mut self) {
        self.events += 1;
        let name = format!("job-{}", self.events);
        let records = [insert_record(self.events, job_image(&name, "completed"))];
        let process = &self.processes[self.events % 2];
        assert_eq!(dispatch_batch(process, &records).await, []);
    }

    /// Passes the messages that are due to both processes at the same time, each message to both.
    pub async fn receive_messages(&mut self) {
        self.messages.extend(self.fixture.tables.timers());
        let now = self.fixture.clock.now();
        let (due, later) = self.messages.drain(..).partition(|timer| timer.due <= now);
        self.messages = later;
        let due: Vec<_> = due;
        let mut retries = Vec::new();
        for process in &self.processes {
            for timer in &due {
                retries.push(run_as(RETRY, process.retry(&timer.message)));
            }
        }
        for retried in futures_util::future::join_all(retries).await {
            retried.unwrap();
        }
    }

    /// Runs the scheduled jobs in both processes, and receives what they send.
    pub async fn run_schedules(&mut self) {
        for process in self.processes.clone() {
            let deadline = Deadline::from_now(Duration::from_secs(20));
            process.sweep(deadline).await.unwrap();
            process.advance(deadline).await.unwrap();
        }
        self.receive_messages().await;
    }

    /// Advances the clock by a minute and runs the schedules.
    pub async fn pass_minute(&mut self) {
        self.fixture.clock.advance(Duration::from_mins(1));
        self.run_schedules().await;
    }

    /// Passes minutes. Returns those after which the endpoint had received a request.
    pub async fn minutes_with_attempts(&mut self, minutes: u64) -> Vec<u64> {
        let mut with_attempts = Vec::new();
        let mut seen = self.fixture.requests();
        for minute in 1..=minutes {
            self.pass_minute().await;
            let requests = self.fixture.requests();
            assert!(requests <= seen + 1, "more than one attempt in a minute");
            if requests > seen {
                with_attempts.push(minute);
            }
            seen = requests;
        }
        with_attempts
    }

    /// Passes minutes until nothing is pending, at most an hour.
    pub async fn settle(&mut self) {
        for _ in 0..60 {
            if self.pending().await.is_empty() {
                return;
            }
            self.pass_minute().await;
        }
        panic!("still pending: {:?}", self.pending().await);
    }

    pub async fn pending(&self) -> Vec<Delivery> {
        let deliveries = self.fixture.deliveries(self.webhook).await;
        deliveries
            .into_iter()
            .filter(|delivery| {
                matches!(
                    delivery.state,
                    DeliveryState::Pending(_) | DeliveryState::Paused
                )
            })
            .collect()
    }

    /// The number of deliveries that wait for the endpoint.
    pub async fn waiting(&self) -> usize {
        let deliveries = self.fixture.deliveries(self.webhook).await;
        deliveries
            .iter()
            .filter(|delivery| {
                delivery.state == DeliveryState::Paused
                    && delivery.waiting_for == Some(WaitReason::Endpoint)
            })
            .count()
    }
}
