//! The whole mix of clients over good releases: nothing of any kind may fail.

use handover_load::{Load, Mix};

use crate::support::{DEADLINE, Setup, assert_no_failure};

const HANDOVERS: u64 = 12;

#[tokio::test]
async fn handovers_under_the_mixed_load_lose_nothing() {
    let setup = Setup::new()
        .with("TESTD_BAKE_MS", 50)
        .with("TESTD_GENERATIONS", 100);
    let service = setup.start().await;
    let load = Load::start(service.web, Mix::standard());
    for generation in 1..=HANDOVERS {
        load.until_answers(generation, 200, DEADLINE).await.unwrap();
        service.upgrade(generation, generation + 1).await;
    }
    load.until_answers(HANDOVERS + 1, 200, DEADLINE)
        .await
        .unwrap();
    assert_no_failure(&load.stop().await);
}

#[tokio::test]
async fn handovers_back_to_back_under_the_mixed_load_lose_nothing() {
    let setup = Setup::new()
        .with("TESTD_BAKE_MS", 0)
        .with("TESTD_GENERATIONS", 100);
    let service = setup.start().await;
    let load = Load::start(service.web, Mix::standard());
    load.until_answers(1, 200, DEADLINE).await.unwrap();
    for generation in 1..=HANDOVERS * 3 {
        service.upgrade(generation, generation + 1).await;
    }
    load.until_answers(HANDOVERS * 3 + 1, 200, DEADLINE)
        .await
        .unwrap();
    assert_no_failure(&load.stop().await);
}
