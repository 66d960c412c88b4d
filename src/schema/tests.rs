use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::gate::{Change, Declared, Generation, Record, State, Version};
use super::memory::Memory;
use super::{Changed, Confirmed, Here, Registration, Schema, Step};
use crate::error::{Error, ErrorKind};

/// Knows and needs so much, has steps as far as it knows, and waits for nothing.
fn schema(store: &Memory, knows: Version, needs: Version) -> Schema {
    let schema = Schema::new(store.clone()).knows(knows).needs(needs);
    let schema = schema.host("here").contract_after(Duration::ZERO);
    (1..=knows).fold(schema, |schema, version| {
        schema
            .expand(version, Step::sql(format!("add {version}")))
            .contract(version, Step::sql(format!("drop {version}")))
    })
}

async fn enter(schema: Schema) -> Result<Registration, Error> {
    Registration::enter(schema, 1, Vec::new(), |_| {}).await
}

fn statements(store: &Memory) -> Vec<String> {
    store.with(|content| content.statements.clone())
}

fn record(store: &Memory) -> Record {
    store.with(|content| content.record.clone())
}

/// Somebody else is in the record.
fn add(store: &Memory, host: &str, knows: Version, state: State) -> Generation {
    let generation = Generation {
        host: host.to_owned(),
        process: "another".to_owned(),
        generation: 40,
        declared: Declared {
            knows,
            ..Declared::default()
        },
        state,
        awaits: None,
        lease_ms: 1_000,
    };
    let entered = Change::Entered(generation.clone());
    store.with(|content| content.record.apply(&entered));
    generation
}

fn remove(store: &Memory, generation: &Generation) {
    let left = Change::Left {
        host: generation.host.clone(),
        process: generation.process.clone(),
    };
    store.with(|content| content.record.apply(&left));
}

async fn serve(registration: &Registration) {
    registration.become_now(State::Active);
    registration.renew().await.unwrap();
}

async fn refused(registration: &Registration, version: Version) -> String {
    let before = registration.look().await.unwrap();
    let refused = registration.contract(version, Confirmed::Yes).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(registration.look().await.unwrap(), before);
    format!("{error:?}")
}

#[tokio::test]
async fn a_store_is_expanded_once_however_many_start_at_the_same_time() {
    let store = Memory::default();
    let starts = (0..10).map(|_| tokio::spawn(enter(schema(&store, 3, 3))));
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap().unwrap();
    }
    assert_eq!(statements(&store), ["add 1", "add 2", "add 3"]);
    assert_eq!(record(&store).version, 3);
}

#[tokio::test]
async fn code_outside_of_a_transaction_runs_once_as_well_and_its_begin_is_in_the_record() {
    let (store, runs) = (Memory::default(), Arc::new(AtomicUsize::new(0)));
    let step = {
        let (store, runs) = (store.clone(), Arc::clone(&runs));
        Step::run(move || {
            let (store, runs) = (store.clone(), Arc::clone(&runs));
            async move {
                assert_eq!(record(&store).expanding, Some(1));
                tokio::task::yield_now().await;
                runs.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
    };
    let one = || schema(&store, 1, 1).expand(1, step.clone());
    let starts = (0..10).map(|_| tokio::spawn(enter(one())));
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap().unwrap();
    }
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(
        (record(&store).version, record(&store).expanding),
        (1, None)
    );
}

/// A step, outside of a transaction, in whose middle others make these changes.
fn overtaken(store: &Memory, by: impl IntoIterator<Item = Change>) -> Step {
    let (store, by): (_, Vec<_>) = (store.clone(), by.into_iter().collect());
    Step::run(move || {
        store.with(|content| by.iter().for_each(|change| content.record.apply(change)));
        async { Ok(()) }
    })
}

#[tokio::test]
async fn whoever_was_overtaken_in_a_step_does_not_take_the_record_back() {
    let store = Memory::default();
    let others = [1, 2, 3].map(Change::Expanded);
    let step = overtaken(&store, others.into_iter().chain([Change::Expanding(4)]));
    let registration = enter(schema(&store, 3, 1).expand(1, step)).await.unwrap();
    assert_eq!(
        (record(&store).version, record(&store).expanding),
        (3, Some(4))
    );

    let others = [Change::Contracted(2), Change::Contracting(3)];
    let overtaken = schema(&store, 3, 1).contract(2, overtaken(&store, others));
    registration.leave().await.unwrap();
    let registration = enter(overtaken).await.unwrap();
    serve(&registration).await;
    registration.contract(2, Confirmed::Yes).await.unwrap();
    assert_eq!(
        (record(&store).floor, record(&store).contracting),
        (3, Some(3))
    );
}

#[tokio::test]
async fn a_command_that_fails_is_named_and_what_it_began_is_known() {
    let store = Memory::default();
    let schema = schema(&store, 1, 1).expand(1, Step::command("sh", ["-c", "exit 3"]));
    let error = enter(schema).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(
        format!("{error:?}").contains("sh: exit status: 3"),
        "{error:?}"
    );
    assert_eq!(
        (record(&store).version, record(&store).expanding),
        (0, Some(1))
    );
    assert_eq!(record(&store).generations, []);
}

#[tokio::test(start_paused = true)]
async fn statements_that_hang_are_given_up_at_the_deadline_of_their_step() {
    let store = Memory::default();
    let limit = Duration::from_secs(1);
    let schema = schema(&store, 1, 1).expand(1, Step::sql("hang").deadline(limit));
    let begun = tokio::time::Instant::now();
    let error = enter(schema).await.unwrap_err();
    assert!(error.has_begun(), "{error:?}");
    let took = begun.elapsed();
    assert!((limit..2 * limit).contains(&took), "{took:?}");
    assert_eq!(record(&store), Record::default());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_has_changed_nothing() {
    let store = Memory::default();
    let needy = Schema::new(store.clone()).knows(9).needs(9);
    let needy = needy.expand(1, Step::sql("add 1"));
    let error = enter(needy).await.unwrap_err();
    assert!(
        format!("{error:?}").contains("needs schema 9, and the store has 1"),
        "{error:?}"
    );
    assert_eq!(record(&store), Record::default());

    store.with(|content| (content.record.version, content.record.floor) = (7, 7));
    let before = record(&store);
    let error = enter(schema(&store, 6, 6)).await.unwrap_err();
    let sentence = "knows schema 6, and the store has been contracted to 7";
    assert!(format!("{error:?}").contains(sentence), "{error:?}");
    assert_eq!(record(&store), before);
}

#[tokio::test]
async fn a_contraction_waits_for_whoever_knows_less_in_whatever_state_and_then_runs_once() {
    let store = Memory::default();
    let registration = enter(schema(&store, 2, 2)).await.unwrap();
    serve(&registration).await;
    for (state, words) in [
        (
            State::Active,
            "there generation 40 (active) knows schema 1 only",
        ),
        (
            State::Draining,
            "there generation 40 (draining) knows schema 1 only",
        ),
        (
            State::Warm,
            "there generation 40 (warm) knows schema 1 only",
        ),
        (
            State::NotYet,
            "there generation 40 (not yet) knows schema 1 only",
        ),
    ] {
        let other = add(&store, "there", 1, state);
        let reason = refused(&registration, 2).await;
        assert!(reason.contains(words), "{reason}");
        remove(&store, &other);
    }
    let lapsed = add(&store, "there", 1, State::Active);
    store.with(|content| content.record.now_ms = 5_000);
    let reason = refused(&registration, 2).await;
    assert!(
        reason.contains("not been heard of since its lease ended 4s ago"),
        "{reason}"
    );
    remove(&store, &lapsed);
    let other = add(&store, "there", 2, State::Warm);
    let reason = refused(&registration, 2).await;
    assert!(reason.contains("(warm) is part of a rollout"), "{reason}");
    remove(&store, &other);
    registration.set_here(Here {
        rollout: Some("an upgrade is under way here".to_owned()),
        ..Here::default()
    });
    let reason = refused(&registration, 2).await;
    assert!(reason.contains("under way here"), "{reason}");
    registration.set_here(Here::default());

    let would = registration.contract(2, Confirmed::DryRun).await.unwrap();
    assert_eq!(would, Changed::Would);
    assert_eq!(record(&store).floor, 0);
    let asking = (0..10).map(|_| {
        let registration = registration.clone();
        tokio::spawn(async move { registration.contract(2, Confirmed::Yes).await })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(statements(&store), ["add 1", "add 2", "drop 2"]);
    let again = registration.contract(2, Confirmed::Yes).await.unwrap();
    assert_eq!(again, Changed::Already);
}

#[tokio::test]
async fn who_is_alive_here_and_has_declared_nothing_knows_nothing_and_is_missed_for_as_long_as_others()
 {
    let store = Memory::default();
    let schema = schema(&store, 2, 1).activated(2);
    let schema = schema.contract_after(Duration::from_secs(60));
    // This one has declared something.
    let entered = add(&store, "here", 2, State::Draining);
    let others = vec![(9, State::Warm), (entered.generation, State::Draining)];
    let registration = Registration::enter(schema, 10, others, |_| {})
        .await
        .unwrap();
    serve(&registration).await;
    remove(&store, &entered);
    let words = "here generation 9 (warm) knows schema 0 only";
    for blockers in [
        refused(&registration, 1).await,
        format!("{:?}", registration.activate(2).await.unwrap_err()),
    ] {
        assert!(blockers.contains(words), "{blockers}");
        assert!(!blockers.contains("generation 40"), "{blockers}");
    }
    store.with(|content| content.record.now_ms = 10_000);
    registration.renew().await.unwrap();
    registration.set_here(Here {
        others: vec![(11, State::NotYet)],
        ..Here::default()
    });
    store.with(|content| content.record.now_ms = 69_999);
    // What starts has not been missed by anybody.
    registration.renew().await.unwrap();
    let reason = refused(&registration, 1).await;
    assert!(reason.contains("gone for 59s only, of 60s"), "{reason}");
    registration.set_here(Here::default());
    store.with(|content| content.record.now_ms = 70_000);
    registration.contract(1, Confirmed::Yes).await.unwrap();
}

#[tokio::test]
async fn a_contraction_waits_until_whoever_knew_less_has_been_gone_for_long_enough() {
    let store = Memory::default();
    let age = Duration::from_secs(60);
    let patient = schema(&store, 2, 2).contract_after(age);
    let registration = enter(patient).await.unwrap();
    serve(&registration).await;
    let before = add(&store, "there", 1, State::Active);
    store.with(|content| content.record.now_ms = 10_000);
    remove(&store, &before);
    store.with(|content| content.record.now_ms = 69_999);
    serve(&registration).await;
    let reason = refused(&registration, 2).await;
    assert!(reason.contains("gone for 59s only, of 60s"), "{reason}");
    store.with(|content| content.record.now_ms = 70_000);
    registration.contract(2, Confirmed::Yes).await.unwrap();
}

#[tokio::test]
async fn a_contraction_whose_drop_failed_is_finished_by_the_next_call_and_by_the_next_start() {
    for by_start in [false, true] {
        let store = Memory::default();
        let failing = schema(&store, 2, 2).contract(2, Step::sql("fail"));
        let registration = enter(failing).await.unwrap();
        serve(&registration).await;
        let error = registration.contract(2, Confirmed::Yes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.has_begun());
        let begun = record(&store);
        assert_eq!((begun.floor, begun.contracting), (2, Some(2)));
        registration.leave().await.unwrap();

        let next = enter(schema(&store, 2, 2)).await.unwrap();
        match by_start {
            true => next.finish_contraction(|_| {}).await.unwrap(),
            false => {
                serve(&next).await;
                next.contract(2, Confirmed::Yes).await.unwrap();
            }
        }
        assert_eq!(record(&store).contracting, None);
        assert_eq!(statements(&store).last().unwrap(), "drop 2");
    }
}

#[tokio::test]
async fn an_error_tells_whether_something_may_have_changed() {
    let store = Memory::default();
    let registration = enter(schema(&store, 1, 1)).await.unwrap();
    registration.leave().await.unwrap();
    let later = schema(&store, 3, 1).expand_at_start(false);
    let failing = later.expand(3, Step::sql("fail"));
    let registration = enter(failing).await.unwrap();
    serve(&registration).await;
    let expanding = async || registration.expand().await.unwrap_err();
    let contracting = async || {
        let contracted = registration.contract(1, Confirmed::Yes).await;
        contracted.unwrap_err()
    };
    let gone = |reason: Option<&str>| {
        let reason = reason.map(str::to_owned);
        store.with(|content| content.gone = reason);
    };
    let mute = |is_mute| store.with(|content| content.is_mute = is_mute);

    gone(Some("gone fishing"));
    assert!(!expanding().await.has_begun());
    assert!(!contracting().await.has_begun());
    gone(None);
    assert!(expanding().await.has_begun());
    assert_eq!(record(&store).version, 2);
    assert!(expanding().await.has_begun());

    mute(true);
    assert!(contracting().await.has_begun());
    assert_eq!(record(&store).contracting, Some(1));
    mute(false);
    // What others have left unfinished says nothing of what this one has changed.
    gone(Some("gone fishing"));
    assert!(!registration.look().await.unwrap_err().has_begun());
    assert!(!contracting().await.has_begun());
}

#[tokio::test]
async fn whoever_starts_later_is_measured_against_the_floor_before_anything_is_dropped() {
    let store = Memory::default();
    let asked = Arc::new(AtomicUsize::new(0));
    let step = {
        let (store, asked) = (store.clone(), Arc::clone(&asked));
        Step::run(move || {
            let (store, asked) = (store.clone(), Arc::clone(&asked));
            async move {
                let error = enter(schema(&store, 1, 1)).await.unwrap_err();
                assert!(format!("{error:?}").contains("contracted to 2"));
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
    };
    let registration = enter(schema(&store, 2, 2).contract(2, step)).await.unwrap();
    serve(&registration).await;
    registration.contract(2, Confirmed::Yes).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_new_form_is_written_once_all_know_it_and_contracted_to_once_all_have_heard() {
    let store = Memory::default();
    let registration = enter(schema(&store, 2, 1).activated(2)).await.unwrap();
    serve(&registration).await;
    let other = add(&store, "there", 1, State::Active);
    let error = registration.activate(2).await.unwrap_err();
    assert!(
        format!("{error:?}").contains("knows schema 1 only"),
        "{error:?}"
    );
    assert!(!registration.is_active(2));
    remove(&store, &other);
    let reason = refused(&registration, 2).await;
    assert!(reason.contains("has not been activated"), "{reason}");

    assert_eq!(registration.activate(2).await.unwrap(), Changed::Done);
    assert_eq!(registration.activate(2).await.unwrap(), Changed::Already);
    assert!(registration.is_active(2));
    let reason = refused(&registration, 2).await;
    assert!(reason.contains("has not heard yet"), "{reason}");
    serve(&registration).await;
    registration.contract(2, Confirmed::Yes).await.unwrap();
}

#[tokio::test]
async fn what_does_not_know_an_active_form_may_not_run_any_more() {
    let store = Memory::default();
    let registration = enter(schema(&store, 3, 1).activated(3)).await.unwrap();
    serve(&registration).await;
    let before = Declared {
        knows: 2,
        ..Declared::default()
    };
    assert_eq!(
        registration.check("the one before", Some(before)).await,
        Ok(())
    );
    assert_eq!(registration.misfit(Some(before)), None);
    registration.activate(3).await.unwrap();
    let sentence = "knows schema 2, and schema 3 is active";
    let checked = registration.check("the one before", Some(before)).await;
    assert!(checked.unwrap_err().contains(sentence));
    let misfit = registration.misfit(Some(before)).unwrap();
    assert!(misfit.contains(sentence), "{misfit}");
    registration.leave().await.unwrap();
    let error = enter(schema(&store, 2, 1)).await.unwrap_err();
    assert!(format!("{error:?}").contains(sentence), "{error:?}");
}

#[tokio::test]
async fn a_generation_that_waits_for_an_activation_blocks_whoever_asks() {
    let store = Memory::default();
    let asking = enter(schema(&store, 3, 1)).await.unwrap();
    serve(&asking).await;
    let mut waiting = add(&store, "there", 3, State::Draining);
    waiting.awaits = Some(2);
    let entered = Change::Entered(waiting.clone());
    store.with(|content| content.record.apply(&entered));
    for version in [2, 3] {
        let reason = refused(&asking, version).await;
        let sentence = "schema 2 has not been activated: there generation 40 (draining) writes the form before";
        assert!(reason.contains(sentence), "{reason}");
    }
    store.with(|content| content.record.active = 2);
    let reason = refused(&asking, 2).await;
    assert!(
        reason.contains("40 (draining) has not heard yet"),
        "{reason}"
    );
    asking.contract(1, Confirmed::Yes).await.unwrap();
    remove(&store, &waiting);
    asking.contract(3, Confirmed::Yes).await.unwrap();
}

#[tokio::test]
async fn releases_that_would_not_read_what_the_other_writes_do_not_run_side_by_side() {
    let store = Memory::default();
    let both = |reads, writes| {
        let schema = schema(&store, 2, 2).forms(reads, writes);
        schema.backfill(Step::nothing())
    };
    let writes_both = enter(both(1, 1..=2)).await.unwrap();
    // Each test is one process, so the one that is in the record is made somebody else.
    let mut entry = writes_both.entry();
    writes_both.leave().await.unwrap();
    (entry.host, entry.lease_ms) = ("there".to_owned(), 1_000);
    store.with(|content| content.record.apply(&Change::Entered(entry)));

    let error = enter(both(2, 2..=2)).await.unwrap_err();
    let sentence = "does not write the form of schema 1, which there generation 1 (not yet) reads";
    assert!(format!("{error:?}").contains(sentence), "{error:?}");
    let error = enter(both(3, 1..=3)).await.unwrap_err();
    assert!(
        format!("{error:?}").contains("reads the form of schema 3"),
        "{error:?}"
    );
    enter(both(2, 1..=2)).await.unwrap();
}

/// Starts, has run, and has left.
async fn run(schema: Schema) -> Result<(), Error> {
    let registration = enter(schema).await?;
    serve(&registration).await;
    registration.leave().await
}

#[tokio::test]
async fn rows_are_brought_into_the_form_that_is_read_each_time_that_others_have_not_written_it() {
    let store = Memory::default();
    let first = || schema(&store, 1, 1).forms(1, 1..=1);
    let copies = |reads, writes| {
        let step = Step::sql(format!("copy to {reads}"));
        schema(&store, 1, 1).forms(reads, writes).backfill(step)
    };
    run(first()).await.unwrap();
    run(copies(1, 1..=2)).await.unwrap();
    assert_eq!(statements(&store), ["add 1"]);
    let unable = schema(&store, 1, 1).forms(2, 1..=2);
    let error = run(unable.clone()).await.unwrap_err();
    let sentence = "reads the form of schema 2, which not every row is in";
    assert!(format!("{error:?}").contains(sentence), "{error:?}");
    for _ in 0..2 {
        run(copies(2, 1..=2)).await.unwrap();
    }
    run(unable.clone()).await.unwrap();
    assert_eq!(statements(&store), ["add 1", "copy to 2"]);

    run(first()).await.unwrap();
    run(unable).await.unwrap_err();
    run(copies(2, 1..=2)).await.unwrap();
    assert_eq!(statements(&store)[2..], ["copy to 2"]);

    run(copies(2, 2..=2)).await.unwrap();
    let error = run(first()).await.unwrap_err();
    assert!(format!("{error:?}").contains("reads the form of schema 1"));
    run(copies(1, 1..=2)).await.unwrap();
    assert_eq!(statements(&store)[3..], ["copy to 1"]);
    run(first()).await.unwrap();
}

#[tokio::test]
async fn nobody_who_does_not_write_the_form_starts_while_rows_are_brought_into_it() {
    for fails in [false, true] {
        let store = Memory::default();
        run(schema(&store, 1, 1).forms(1, 1..=1)).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let step = {
            let (store, asked) = (store.clone(), Arc::clone(&asked));
            Step::run(move || {
                let (store, asked) = (store.clone(), Arc::clone(&asked));
                async move {
                    // On another host, for which this process is another one.
                    let entry = record(&store).generations[0].clone();
                    let elsewhere = Generation {
                        host: "there".to_owned(),
                        ..entry.clone()
                    };
                    remove(&store, &entry);
                    let entered = Change::Entered(elsewhere.clone());
                    store.with(|content| content.record.apply(&entered));
                    let older = enter(schema(&store, 1, 1).forms(1, 1..=1)).await;
                    let error = format!("{:?}", older.unwrap_err());
                    assert!(
                        error.contains("does not write the form of schema 2"),
                        "{error}"
                    );
                    remove(&store, &elsewhere);
                    let entered = Change::Entered(entry);
                    store.with(|content| content.record.apply(&entered));
                    asked.fetch_add(1, Ordering::Relaxed);
                    match fails {
                        true => Err("as planned".into()),
                        false => Ok(()),
                    }
                }
            })
        };
        let copying = schema(&store, 1, 1).forms(2, 1..=2).backfill(step);
        let entered = enter(copying).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert_eq!(entered.is_err(), fails);
        if let Err(error) = entered {
            assert!(
                format!("{error:?}").contains("into the form of schema 2"),
                "{error:?}"
            );
            // It is in nobody's way, and has written nothing.
            assert_eq!(record(&store).generations, []);
            run(schema(&store, 1, 1).forms(1, 1..=1)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_rollback_to_a_release_that_lacks_rows_is_blocked_unless_it_can_fill_them_in() {
    let store = Memory::default();
    run(schema(&store, 1, 1).forms(1, 1..=1)).await.unwrap();
    let copies = schema(&store, 1, 1).forms(2, 2..=2);
    let copies = copies.backfill(Step::sql("copy to 2"));
    let registration = enter(copies).await.unwrap();
    serve(&registration).await;
    let before = schema(&store, 1, 1).forms(1, 1..=2);
    let misfit = registration.misfit(Some(before.declared())).unwrap();
    assert!(misfit.contains("which not every row is in"), "{misfit}");
    let able = before.backfill(Step::sql("copy to 1"));
    assert_eq!(registration.misfit(Some(able.declared())), None);
    assert_eq!(registration.misfit(None), None);
}

#[tokio::test]
async fn a_release_that_does_not_write_what_it_reads_never_starts() {
    let store = Memory::default();
    let error = run(schema(&store, 1, 1).forms(1, 2..=2)).await.unwrap_err();
    assert!(format!("{error:?}").contains("its own rows"), "{error:?}");
    assert_eq!(record(&store), Record::default());
}

#[tokio::test]
async fn a_generation_of_this_host_that_was_killed_is_in_nobodys_way() {
    let store = Memory::default();
    let both = |reads, writes| {
        let schema = schema(&store, 2, 2).forms(reads, writes);
        schema.backfill(Step::nothing())
    };
    let first = enter(both(1, 1..=1)).await.unwrap();
    let mut killed = first.entry();
    // The same number, and another start: that process is no more.
    killed.process.push('1');
    first.leave().await.unwrap();
    let entered = Change::Entered(killed);
    store.with(|content| content.record.apply(&entered));
    let second = enter(both(2, 2..=2)).await.unwrap();
    let [left] = &record(&store).generations[..] else {
        panic!("{:?}", record(&store));
    };
    assert!(left.is(&second.entry()));
    assert_eq!(second.check_candidate(1).await, Ok(()));
}

#[tokio::test]
async fn of_a_host_is_expunged_what_has_lapsed_by_whoever_means_it() {
    let store = Memory::default();
    let registration = enter(schema(&store, 2, 2)).await.unwrap();
    // On this host it is in another container.
    for host in ["here", "there"] {
        add(&store, host, 1, State::Active);
    }
    let expunge = async |host, confirmed| registration.expunge(host, confirmed).await;
    let refused = async |host, reason: &str| {
        let error = expunge(host, Confirmed::Yes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(format!("{error:?}").contains(reason), "{error:?}");
    };
    for host in ["here", "there"] {
        refused(host, "their leases have not lapsed").await;
    }
    let known = |store: &Memory| record(store).generations.len();
    assert_eq!(known(&store), 3);

    // The lease of whoever does it runs on.
    store.with(|content| content.record.now_ms = 2_000);
    let would = expunge("there", Confirmed::DryRun).await.unwrap();
    assert_eq!((would, known(&store)), (Changed::Would, 3));
    for (host, left) in [("there", 2), ("here", 1)] {
        let done = expunge(host, Confirmed::Yes).await.unwrap();
        assert_eq!((done, known(&store)), (Changed::Done, left));
    }
    refused("there", "no generation of that host").await;
    refused("here", "their leases have not lapsed").await;
}

#[tokio::test]
async fn without_its_store_nothing_starts_or_changes_and_a_rollback_goes_by_what_was_known() {
    let store = Memory::default();
    let registration = enter(schema(&store, 2, 2)).await.unwrap();
    store.with(|content| content.gone = Some("gone fishing".to_owned()));
    let starting = enter(schema(&store, 2, 2)).await.unwrap_err();
    let contracting = registration.contract(2, Confirmed::Yes).await.unwrap_err();
    let renewing = registration.renew().await.unwrap_err();
    for error in [starting, contracting, renewing] {
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(format!("{error:?}").contains("gone fishing"), "{error:?}");
    }
    let flip = registration.check_candidate(2).await.unwrap_err();
    assert!(flip.contains("is not known"), "{flip}");
    assert_eq!(registration.misfit(None), None);
    let older = Declared {
        needs: 3,
        ..Declared::default()
    };
    assert!(registration.misfit(Some(older)).is_some());
}

#[tokio::test]
async fn a_candidate_is_measured_by_what_it_has_entered_and_one_that_has_not_knows_nothing() {
    let store = Memory::default();
    let registration = enter(schema(&store, 2, 2)).await.unwrap();
    add(&store, "here", 1, State::NotYet);
    assert_eq!(registration.check_candidate(40).await, Ok(()));
    assert_eq!(registration.check_candidate(41).await, Ok(()));
    store.with(|content| content.record.floor = 2);
    let reason = registration.check_candidate(40).await.unwrap_err();
    assert!(
        reason.starts_with("generation 40 knows schema 1, and"),
        "{reason}"
    );
    let reason = registration.check_candidate(41).await.unwrap_err();
    assert!(
        reason.contains("41 has declared no schema, so it knows schema 0"),
        "{reason}"
    );
}
