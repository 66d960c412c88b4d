//! Two hosts share one store, and the gate holds across both.

use handover::control::{Reply, Request};
use handover::schema::{Postgres, Store};
use handover_load::{Server, Signal};
use tokio::time::timeout;

use crate::operated::Operated;
use crate::postgres;
use crate::rig::{Database, assert_refused, contract, on, release, remove, replaced, state, until};
use crate::support::{DEADLINE, freeze, gone, signal, thaw};

/// Both of the first release, "web1" and "web2", with one store.
async fn two_hosts(store: &str) -> [Operated; 2] {
    let start = async |host| Operated::start(on(store, host)).await;
    [start("web1").await, start("web2").await]
}

pub(crate) async fn across_two_hosts([web1, web2]: &[Operated; 2]) {
    release(web1, 1, "2:2").await;
    until(web1, "generation 1 of web1 has left", |state| {
        let mut all = state.generations.iter();
        state.generations.len() == 2 && all.all(|it| it.state == "active")
    })
    .await;
    assert_refused(
        &contract(web1, 2).await,
        &["web2 generation 1 (active) knows schema 1 only"],
    );

    // It may be frozen, it may be gone: nobody here can know.
    freeze_outside_of_a_transaction(web1, web2.service.pid()).await;
    let lapsed = |state: &handover::control::SchemaState| {
        state.generations.iter().any(|it| it.lapsed_ms.is_some())
    };
    until(web1, "the lease of web2 has lapsed", lapsed).await;
    let refused = contract(web1, 2).await;
    assert_refused(&refused, &["has not been heard of", "expunge \"web2\""]);
    thaw(web2.service.pid());
    until(web1, "web2 is heard of again", |state| !lapsed(state)).await;

    // The candidate of the other host is part of a rollout, whatever it knows.
    web2.service.plan("schema=2:2\nbefore-ready=hold");
    assert_eq!(web2.run(&["upgrade", "--no-wait"]).await.code, 0);
    let candidate = web2.service.held("before-ready").await;
    assert_refused(
        &contract(web1, 2).await,
        &[
            "web2 generation 2 (not yet) is part of a rollout",
            "web2 generation 1 (active) knows",
        ],
    );
    signal(candidate, Signal::USR1);
    web2.service.line("event 1 committed 2 ").await;
    until(web1, "generation 1 of web2 has left", |state| {
        let [_, of_web2] = &state.generations[..] else {
            return false;
        };
        of_web2.generation == 2 && of_web2.state == "active"
    })
    .await;
    // The statement fails where the column is gone, so it runs once.
    let asking = (0..10).map(|number| {
        let asked = [web1, web2][number % 2];
        tokio::spawn(
            asked
                .program(&["schema", "contract", "2", "--confirm"])
                .output(),
        )
    });
    for asked in asking.collect::<Vec<_>>() {
        let output = asked.await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(state(web2).await.floor, 2);

    // What has died on another host is for somebody who knows.
    let three = release(web1, 2, "3:2").await;
    until(web1, "generation 2 of web1 has left", |state| {
        state.generations.len() == 2
    })
    .await;
    assert!(three > 0);
    let killed = web2.service.ready(2).await;
    signal(killed, Signal::KILL);
    gone(killed).await;
    until(web1, "the lease of web2 has lapsed", lapsed).await;
    assert_refused(
        &web1.run(&["schema", "activate", "3"]).await,
        &[
            "web2 generation 2 (active) knows schema 2 only",
            "has not been heard of",
        ],
    );
    let dry = web1.run(&["schema", "expunge", "web2"]).await;
    assert!(dry.stdout.contains("would be expunged"), "{dry:?}");
    assert_eq!(web1.run(&["schema", "activate", "3"]).await.code, 2);
    assert_refused(
        &web1.run(&["schema", "expunge", "web1", "--confirm"]).await,
        &["their leases have not lapsed"],
    );
    assert_eq!(
        web1.run(&["schema", "expunge", "web2", "--confirm"])
            .await
            .code,
        0
    );
    assert_eq!(web1.run(&["schema", "activate", "3"]).await.code, 0);
    until(web1, "web1 has heard of it", |state| {
        let gate = state.contractions.iter().find(|gate| gate.version == 3);
        gate.is_some_and(|gate| gate.blockers.is_empty())
    })
    .await;
    assert_eq!(contract(web1, 3).await.code, 0);
}

/// One that is frozen in the middle of one keeps everybody waiting, who says so, and knows no more.
async fn freeze_outside_of_a_transaction(other: &Operated, pid: u32) {
    let is_free = async || {
        let asked = other
            .run(&["schema", "expunge", "nobody", "--confirm"])
            .await;
        asked.stderr.contains("no generation of that host")
    };
    freeze(pid).await;
    while !is_free().await {
        thaw(pid);
        freeze(pid).await;
    }
}

#[tokio::test]
async fn the_gate_holds_across_two_instances_with_one_sqlite_file() {
    let database = Database::new();
    let hosts = two_hosts(&database.path().display().to_string()).await;
    across_two_hosts(&hosts).await;
    remove(&database.path());
}

#[tokio::test]
async fn the_gate_holds_across_two_instances_with_one_postgresql_database() {
    let Some(server) = postgres::Server::start().await else {
        return;
    };
    let hosts = two_hosts(&server.database("app").await).await;
    across_two_hosts(&hosts).await;
    let client = server.connect("app").await;
    let sql = "SELECT column_name::text FROM information_schema.columns WHERE table_name = 'thing'";
    assert!(client.query(sql, &[]).await.unwrap().is_empty());
}

/// The statements of a step fail if they run twice.
async fn six_start_at_once(store: &str) {
    let start = |number| {
        let setup = on(store, &format!("web{number}"));
        std::fs::write(setup.room.path().join("plan"), "after-start=hold").unwrap();
        let server = Server::spawn(setup.command).unwrap();
        (server, setup.room)
    };
    let started: Vec<_> = (0..6).map(start).collect();
    for (server, _) in &started {
        let held = server.wait_for_line("held after-start", DEADLINE);
        held.await.unwrap();
    }
    for (server, _) in &started {
        server.signal(Signal::USR1).unwrap();
    }
    for (server, _) in &started {
        let ready = server.wait_for_line("ready 1 pid ", DEADLINE);
        ready.await.unwrap();
    }
    let seventh = Operated::start(on(store, "web6")).await;
    let state = state(&seventh).await;
    assert_eq!((state.version, state.generations.len()), (1, 7));
}

#[tokio::test]
async fn a_store_is_expanded_once_though_six_hosts_start_at_the_same_time() {
    let database = Database::new();
    six_start_at_once(&database.path().display().to_string()).await;
    if let Some(server) = postgres::Server::start().await {
        six_start_at_once(&server.database("app").await).await;
    }
}

#[tokio::test]
async fn a_store_is_expanded_once_whatever_isolation_its_database_has_by_default() {
    let Some(server) = postgres::Server::start().await else {
        return;
    };
    let store = server.database("app").await;
    let strict = "ALTER DATABASE app SET default_transaction_isolation = 'serializable'";
    let client = server.connect("app").await;
    client.batch_execute(strict).await.unwrap();
    six_start_at_once(&store).await;
}

#[tokio::test]
async fn a_contraction_that_was_killed_on_one_host_is_finished_by_a_start_on_another() {
    let Some(server) = postgres::Server::start().await else {
        return;
    };
    let store = server.database("app").await;
    let web1 = Operated::start(on(&store, "web1")).await;
    replaced(&web1, 1, "2:2\ncontract=hold").await;
    let _asking = web1.begin(&["schema", "contract", "2", "--confirm"]);
    let contracting = web1.service.held("contract").await;
    signal(contracting, Signal::KILL);
    gone(contracting).await;
    let setup = on(&store, "web2");
    std::fs::write(setup.room.path().join("plan"), "schema=2:2").unwrap();
    let web2 = Operated::start(setup).await;
    let state = state(&web2).await;
    assert_eq!((state.floor, state.contracting), (2, None));
    let client = server.connect("app").await;
    let sql = "SELECT column_name::text FROM information_schema.columns WHERE table_name = 'thing' ORDER BY 1";
    let columns = client.query(sql, &[]).await.unwrap();
    let columns: Vec<String> = columns.iter().map(|row| row.get(0)).collect();
    assert_eq!(columns, ["after", "id"]);
}

#[tokio::test]
async fn a_step_that_is_killed_in_the_middle_of_a_postgresql_transaction_has_left_nothing() {
    let Some(server) = postgres::Server::start().await else {
        return;
    };
    let store = server.database("app").await;
    let of = Operated::start(on(&store, "web1")).await;
    of.service.plan("schema=2:2\nexpand=endless");
    assert_eq!(of.run(&["upgrade", "--no-wait"]).await.code, 0);
    let client = server.connect("app").await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%ADD COLUMN%' AND state = 'active' AND pid <> pg_backend_pid()";
    let count = async || -> i64 { client.query_one(running, &[]).await.unwrap().get(0) };
    let is_running = async {
        while count().await == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, is_running).await.unwrap();
    let expanding = of.client().ask(&Request::Status).await.unwrap();
    let Reply::Status(status) = expanding else {
        panic!("{expanding:?}");
    };
    let pid = status.upgrade.unwrap().pid.unwrap();
    // However long a step takes on one host, another one starts.
    let web2 = Operated::start(on(&store, "web2")).await;
    assert_eq!(state(&web2).await.generations.len(), 2);
    signal(pid, Signal::KILL);
    of.service.line("event 1 aborted 2 ").await;
    // The server finds out by itself that its client has gone, and lets go of the table.
    of.service.plan("schema=2:2");
    of.service.upgrade(1, 3).await;
    let sql = "SELECT version, floor, expanding FROM handover_schema";
    let row = client.query_one(sql, &[]).await.unwrap();
    let found: (i64, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(found, (2, 0, None));
}

#[tokio::test]
async fn without_its_server_a_service_serves_and_contracts_nothing_until_it_is_back() {
    let Some(mut server) = postgres::Server::start().await else {
        return;
    };
    let store = server.database("app").await;
    let of = Operated::start(on(&store, "web1")).await;
    replaced(&of, 1, "2:2").await;
    server.stop();
    let refused = contract(&of, 2).await;
    assert_refused(&refused, &["contracting to schema 2"]);
    of.service
        .line("the store of the schema cannot be asked")
        .await;
    of.service.assert_serving(2).await;
    assert_eq!(of.run(&["upgrade"]).await.code, 3);
    of.service.assert_serving(2).await;
    server.restart().await;
    until_asked(&of).await;
    let contracted = contract(&of, 2).await;
    assert_eq!(contracted.code, 0, "{contracted:?}");
}

#[tokio::test]
async fn a_step_whose_claim_is_lost_with_its_connection_is_given_up_and_done_by_the_next() {
    let Some(server) = postgres::Server::start().await else {
        return;
    };
    let store = server.database("app").await;
    let of = Operated::start(on(&store, "web1")).await;
    of.service.plan("schema=2:2\nexpand=hold");
    assert_eq!(of.run(&["upgrade", "--no-wait"]).await.code, 0);
    of.service.held("expand").await;
    let client = server.connect("app").await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'";
    let count: i64 = client.query_one(cut, &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
    of.service.line("event 1 aborted 2 ").await;
    let told = of.run(&["explain"]).await;
    told.assert_says(&["expanding to schema 2", "the claim on it was lost"]);
    of.service.assert_serving(1).await;
    of.service.plan("schema=2:2\nexpand=tell");
    let successor = of.service.upgrade(1, 3).await;
    of.service.line(&format!("ran expand in {successor}")).await;
    assert_eq!(state(&of).await.version, 2);
}

#[tokio::test]
async fn statements_that_end_their_transaction_are_an_error_on_postgresql_too() {
    let Some(server) = postgres::Server::start().await else {
        return;
    };
    let store = Postgres::new(server.database("app").await);
    let mut transaction = store.begin(DEADLINE).await.unwrap();
    let ended = transaction
        .execute("CREATE TABLE t (x INT); COMMIT", DEADLINE)
        .await;
    let ended = ended.unwrap_err().to_string();
    assert!(ended.contains("ended the transaction"), "{ended}");
}

#[tokio::test]
async fn a_new_form_is_contracted_to_once_every_host_has_heard_that_it_is_written() {
    let database = Database::new();
    let start = async |host| {
        let setup = database.setup(host);
        std::fs::write(setup.room.path().join("plan"), "schema=3:2").unwrap();
        Operated::start(setup).await
    };
    let [web1, web2] = [start("web1").await, start("web2").await];
    until(&web1, "both serve", |state| {
        state.generations.iter().all(|it| it.state == "active")
    })
    .await;
    freeze_outside_of_a_transaction(&web1, web2.service.pid()).await;
    assert_eq!(web1.run(&["schema", "activate", "3"]).await.code, 0);
    let deaf = "web2 generation 1 (active) has not heard yet";
    assert_refused(&contract(&web1, 3).await, &[deaf]);
    thaw(web2.service.pid());
    until(&web1, "both have heard", |state| {
        let gate = state.contractions.iter().find(|gate| gate.version == 3);
        gate.is_some_and(|gate| gate.blockers.is_empty())
    })
    .await;
    assert_eq!(contract(&web1, 3).await.code, 0);
}

async fn until_asked(of: &Operated) {
    let asked = async {
        while of.run(&["schema", "status"]).await.code != 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asked).await.unwrap();
}
