//! The schema of a release, as settings and the plan say.

use std::future::pending;
use std::time::Duration;

use handover::Starting;
use handover::schema::{Schema, Sqlite, Step};

use crate::plan::Plan;
use crate::{Outcome, millis, setting};

/// `TESTD_SCHEMA` names the store, and `TESTD_HOST` this host. The plan's `schema=KNOWS:NEEDS` is what the release says;
/// without it, it knows and needs 1. Its steps make a table, give it a column and take one away; `expand=` and
/// `contract=` make them others: `hold` outside of a transaction, `endless` or `fail` in it. With `expand-at=` something an
/// operator expands.
pub(crate) async fn declare(starting: &mut Starting, plan: &Plan) -> Outcome {
    let Some(store) = setting("TESTD_SCHEMA") else {
        return Ok(());
    };
    let said = plan.get("schema").unwrap_or("1:1");
    if said == "none" {
        return Ok(());
    }
    let (knows, needs) = said.split_once(':').ok_or("schema=KNOWS:NEEDS")?;
    let schema = schema_in(&store)
        .knows(knows.parse()?)
        .needs(needs.parse()?)
        .contract_after(millis("TESTD_CONTRACT_AFTER_MS").unwrap_or_default())
        .expand_at_start(plan.get("expand-at").is_none())
        .answer_deadline(Duration::from_secs(2));
    let schema = with_steps(schema, plan);
    let schema = match setting("TESTD_HOST") {
        Some(host) => schema.host(host),
        None => schema,
    };
    let schema = match (millis("TESTD_LEASE_MS"), millis("TESTD_RENEW_MS")) {
        (Some(lease), Some(renew)) => schema.lease(lease).renew(renew),
        _ => schema,
    };
    let schema = match millis("TESTD_LOCK_MS") {
        Some(limit) => schema.lock_deadline(limit),
        None => schema,
    };
    let schema = match plan.get("forms") {
        Some(forms) => {
            let (reads, writes) = forms.split_once(':').ok_or("forms=READS:FROM-TO")?;
            let (from, to) = writes.split_once('-').ok_or("forms=READS:FROM-TO")?;
            let schema = schema.forms(reads.parse()?, from.parse()?..=to.parse()?);
            schema.backfill(Step::nothing())
        }
        None => schema,
    };
    let registration = starting.schema(schema).await?;
    println!(
        "schema {} of {}",
        registration.version(),
        std::process::id()
    );
    Ok(())
}

fn schema_in(store: &str) -> Schema {
    #[cfg(feature = "schema-postgres")]
    if store.starts_with("host=") {
        return Schema::new(handover::schema::Postgres::new(store));
    }
    Schema::new(Sqlite::new(store))
}

fn with_steps(schema: Schema, plan: &Plan) -> Schema {
    let table = "CREATE TABLE thing (id BIGINT PRIMARY KEY, before TEXT)";
    let add = "ALTER TABLE thing ADD COLUMN after TEXT";
    let limited = |step: Step| match millis("TESTD_STEP_MS") {
        Some(limit) => step.deadline(limit),
        None => step,
    };
    let drop = "ALTER TABLE thing DROP COLUMN before";
    schema
        .expand(1, Step::sql(table))
        .expand(2, limited(step(plan.get("expand"), "expand", add)))
        .contract(2, step(plan.get("contract"), "contract", drop))
        .expand(3, Step::sql("CREATE TABLE other (id BIGINT PRIMARY KEY)"))
        .contract(3, Step::sql("DROP TABLE thing"))
        .activated(3)
}

fn step(how: Option<&str>, name: &'static str, statements: &str) -> Step {
    match how {
        None => Step::sql(statements),
        Some("endless") => Step::sql(format!(
            "{statements}; WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i > 0)
             INSERT INTO thing (id) SELECT max(i) FROM n"
        )),
        Some("fail") => Step::sql(format!("{statements}; SELECT * FROM nothing")),
        Some("hold") => Step::run(move || async move {
            println!("held {name} pid {}", std::process::id());
            pending().await
        }),
        // What has run is seen in standard output.
        Some(_) => Step::run(move || async move {
            println!("ran {name} in {}", std::process::id());
            Ok(())
        }),
    }
}
