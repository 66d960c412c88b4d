//! Workers that do not say themselves that they are ready.

use std::fs;
use std::time::Duration;

use handover::control::{Reply, Request};
use serde_json::json;
use tokio::time::timeout;

use crate::rig::{ACCEPTS, Pool};
use crate::support::{DEADLINE, free_address};

#[tokio::test]
async fn a_candidate_is_awaited_for_as_long_as_its_update_says_and_not_the_pool() {
    let (room, web) = (tempfile::tempdir().unwrap(), free_address());
    let gate = room.path().join("gate");
    fs::write(&gate, "").unwrap();
    let limit = Duration::from_secs(1);
    let flags = "--ready accepts --min-healthy 50ms --healthy-deadline 1s";
    let flags: Vec<&str> = flags.split(' ').collect();
    let program = ["python3", "-c", ACCEPTS, gate.to_str().unwrap()];
    let pool = Pool::of(room, web, 1, &flags, &program);
    pool.until_ready(1).await;
    fs::remove_file(&gate).unwrap();
    let plan = json!({ "healthy_deadline": DEADLINE });
    let asked = pool
        .ask(&Request::Upgrade {
            wait: false,
            strategy: None,
            plan: plan.as_object().cloned(),
            automatic: false,
        })
        .await;
    assert!(matches!(asked, Reply::Begun { generation: 2 }), "{asked:?}");
    let is_old = async {
        let is_old = |age_ms| Duration::from_millis(age_ms) > 2 * limit;
        while !pool
            .pool()
            .await
            .workers
            .iter()
            .any(|it| it.release == 2 && is_old(it.age_ms))
        {}
    };
    timeout(DEADLINE, is_old).await.unwrap();
    fs::write(&gate, "").unwrap();
    pool.until_rests_on(2, 1).await;
}
