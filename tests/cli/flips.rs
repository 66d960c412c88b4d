//! The accept right, there and back again.

use handover_load::Sides;

use crate::operated::Operated;
use crate::support::DEADLINE;

const ROUNDS: u32 = 12;
/// Answers that are waited for on each side of a flip.
const ANSWERS: u64 = 20;

#[tokio::test]
async fn who_has_acknowledged_a_flip_or_a_rollback_answers_nobody_any_more_and_nobody_is_lost() {
    let operated = Operated::start_with_a_bake().await;
    let sides = Sides::start(operated.service.web, 4);
    for candidate in 2..2 + ROUNDS {
        sides.anybody();
        operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
        operated.phase(1, u64::from(candidate), "baking").await;
        sides.only(candidate);
        sides.until_judged(ANSWERS, DEADLINE).await.unwrap();
        sides.anybody();
        operated.run(&["rollback"]).await.assert_code(0);
        sides.only(1);
        sides.until_judged(ANSWERS, DEADLINE).await.unwrap();
    }
    let report = sides.stop();
    assert_eq!((report.wrong, report.failures()), (0, 0), "{report}");
    assert!(report.judged >= u64::from(ROUNDS) * 2 * ANSWERS);
}
