//! Resumes and replays: each advances every minute, whatever happens to the others.

use std::{collections::HashSet, time::Duration};

use nano_webhooks::{
    dispatch::Dispatcher,
    store::replays::{READS_PER_MINUTE, ReplayKey},
};

use crate::support::{
    proxy::{Fault, PartitionFault},
    sqs::{Sqs, SqsMode},
    stream::deadline,
    sweep_fixture::SweepFixture,
};

/// The due times of an account's pending deliveries, in order.
async fn due_times(fixture: &SweepFixture, account: &str) -> Vec<i64> {
    let mut times = Vec::new();
    for item in fixture.pending_items(account).await {
        if let Some(due_at) = item.get("next_attempt_at") {
            times.push(due_at.as_n().unwrap().parse().unwrap());
        }
    }
    times.sort_unstable();
    times
}

async fn counts(fixture: &SweepFixture, replay: &ReplayKey) -> (u64, u64) {
    let replay = fixture.replay(replay).await;
    (replay.found, replay.sent)
}

/// Thirty replays run at once. Each makes its whole step in one run, except the one whose partition
/// refuses writes, and each keeps its own pace.
#[tokio::test]
async fn every_replay_advances_each_minute() {
    let fixture = SweepFixture::new().await;
    let mut replays = Vec::new();
    for number in 0..30 {
        let account = format!("account-{number}");
        fixture.add_failed(&account, 40).await;
        replays.push(fixture.start_replay(&account).await);
    }
    fixture
        .proxy
        .set_partition_fault(&["account-7#1"], PartitionFault::Throttled);
    assert_eq!(fixture.advance().await, 29 * 40);
    let messages = fixture.take_messages();
    assert_eq!(messages.len(), 29);
    assert_eq!(messages["account-3"], 40);
    assert_eq!(counts(&fixture, &replays[7]).await, (0, 0));
    assert_eq!(counts(&fixture, &replays[3]).await, (40, 40));
    let start = fixture.now().as_unix_millis();
    let paced: Vec<_> = (1..=40).map(|number| start + 200 * number).collect();
    assert_eq!(due_times(&fixture, "account-3").await, paced);

    fixture
        .proxy
        .set_partition_fault(&[], PartitionFault::Throttled);
    assert_eq!(fixture.advance().await, 40);
    assert_eq!(counts(&fixture, &replays[7]).await, (40, 40));
}

/// A run that Lambda repeats at once schedules behind what is scheduled. Further runs wait when two
/// minutes are scheduled.
#[tokio::test]
async fn repeated_run_keeps_pace() {
    let fixture = SweepFixture::new().await;
    fixture.add_failed("acme", 3 * READS_PER_MINUTE).await;
    fixture.start_replay("acme").await;
    assert_eq!(fixture.advance().await, READS_PER_MINUTE);
    assert_eq!(fixture.advance().await, READS_PER_MINUTE);
    let times = due_times(&fixture, "acme").await;
    for pair in times.windows(2) {
        assert_eq!(pair[1] - pair[0], 200);
    }
    let ahead = fixture.advance().await;
    assert!(
        ahead < READS_PER_MINUTE,
        "two minutes are scheduled: {ahead}"
    );
    assert_eq!(fixture.advance().await, 0);
}

/// The process dies at any transaction of a step, before or after it is applied. The next run
/// continues, and each delivery is scheduled and counted once.
#[tokio::test]
async fn crash_in_step_counts_each_delivery_once() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        for skip in [0, 1, 3] {
            let fixture = SweepFixture::new().await;
            fixture.add_failed("acme", 45).await;
            let replay = fixture.start_replay("acme").await;
            fixture.proxy.arm("TransactWriteItems", skip, fault);
            let crashed = fixture.proxy.until_crash(Box::pin(fixture.advance()));
            assert_eq!(crashed.await, None);
            let (found, sent) = counts(&fixture, &replay).await;
            assert_eq!(found, sent);
            assert_eq!(
                fixture.pending("acme").await as u64,
                sent,
                "{fault:?} {skip}"
            );
            fixture.advance().await;
            assert_eq!(
                counts(&fixture, &replay).await,
                (45, 45),
                "{fault:?} {skip}"
            );
            let times: HashSet<_> = due_times(&fixture, "acme").await.into_iter().collect();
            assert_eq!(times.len(), 45, "each delivery has its own time");
        }
    }
}

/// The process dies at any update of a resume's step, before or after it is applied. The next run
/// continues, and what had become due is found by the sweep.
#[tokio::test]
async fn crash_in_resume_step_loses_nothing() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        for skip in [0, 7, 20] {
            let fixture = SweepFixture::new().await;
            fixture.add_paused("acme", 0..20).await;
            fixture.start_resume("acme").await;
            fixture.proxy.arm("UpdateItem", skip, fault);
            let crashed = fixture.proxy.until_crash(Box::pin(fixture.advance()));
            assert_eq!(crashed.await, None, "{fault:?} {skip}");
            fixture.advance().await;
            let due = due_times(&fixture, "acme").await;
            assert_eq!(due.len(), 20, "{fault:?} {skip}");
        }
    }
}

/// SQS rejects the messages of a step. The next sweep sends them.
#[tokio::test]
async fn sweep_sends_rejected_messages_of_replay() {
    let fixture = SweepFixture::new().await;
    fixture.add_failed("acme", 20).await;
    fixture.start_replay("acme").await;
    let sqs = Sqs::start(SqsMode::RejectAll).await;
    let dispatcher = Dispatcher {
        queue: sqs.queue(),
        ..fixture.dispatcher.clone()
    };
    assert_eq!(dispatcher.advance(deadline()).await.unwrap(), 20);
    assert_eq!(sqs.message_count(), 0);
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(dispatcher.sweep(deadline()).await.unwrap(), 20);
    assert_eq!(sqs.message_count(), 20);
}

/// A delivery that is paused while a long resume runs, behind what the resume has read, is resumed
/// too. The job ends after a pass that began two minutes after its start.
#[tokio::test]
async fn delivery_paused_during_resume_is_resumed() {
    let fixture = SweepFixture::new().await;
    fixture.add_paused("acme", 0..650).await;
    fixture.start_resume("acme").await;
    assert_eq!(fixture.advance().await, 300);
    fixture.add_paused("acme", 650..651).await;
    let mut steps = 1;
    while !fixture.tables().items_under("RESUME").await.is_empty() {
        fixture.pass(Duration::from_mins(1));
        fixture.advance().await;
        steps += 1;
        assert!(steps < 10, "the resume ends");
    }
    assert_eq!(due_times(&fixture, "acme").await.len(), 651);
}

/// A resume that Lambda runs twice at once keeps its pace, and waits when two minutes are
/// scheduled.
#[tokio::test]
async fn repeated_resume_keeps_pace() {
    let fixture = SweepFixture::new().await;
    fixture.add_paused("acme", 0..1_200).await;
    fixture.start_resume("acme").await;
    let mut scheduled = 0;
    loop {
        let step = fixture.advance().await;
        if step == 0 {
            break;
        }
        scheduled += step;
    }
    assert_eq!(scheduled, 900, "up to a step beyond two minutes");
    let times = due_times(&fixture, "acme").await;
    for pair in times.windows(2) {
        assert_eq!(pair[1] - pair[0], 200);
    }
    fixture.pass(Duration::from_mins(2));
    assert_eq!(fixture.advance().await, 300);
}
