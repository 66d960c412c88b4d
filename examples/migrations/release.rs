//! What each of the four releases knows, needs, reads and writes.

use std::fs;
use std::io;
use std::path::Path;

use handover::schema::{Schema, Step};

use crate::people::Database;

/// Its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release(pub(crate) u32);

impl Release {
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let number = match fs::read_to_string(directory.join("release")) {
            Ok(number) => number.trim().parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
            Err(error) => return Err(error),
        };
        Ok(Self(number))
    }

    /// The versions of the schema are numbered as the releases are that bring them.
    pub(crate) fn schema(self, database: &Database) -> Schema {
        let steps = database
            .schema()
            .expand(1, Step::sql(database.table()))
            .expand(2, Step::sql("ALTER TABLE people ADD COLUMN full_name TEXT"))
            .expand(3, Step::nothing())
            .expand(4, Step::nothing())
            .contract(4, Step::sql("ALTER TABLE people DROP COLUMN name"));
        let copy = |from: &str, to: &str| {
            let lacking = format!("{to} IS NULL OR {to} <> {from}");
            Step::sql(format!("UPDATE people SET {to} = {from} WHERE {lacking}"))
        };
        let forth = copy("name", "full_name");
        match self.0 {
            // The form of version 1 is the column `name`, that of version 2 is `full_name`.
            1 => steps.knows(1).needs(1).forms(1, 1..=1),
            2 => {
                let back = copy("full_name", "name");
                steps.knows(2).needs(2).forms(1, 1..=2).backfill(back)
            }
            3 => steps.knows(3).needs(2).forms(2, 1..=2).backfill(forth),
            number => {
                let steps = steps.knows(number).needs(2);
                steps.forms(2, 2..=2).backfill(forth)
            }
        }
    }

    pub(crate) fn reads(self) -> &'static str {
        match self.0 {
            1 | 2 => "SELECT name FROM people WHERE id = $1",
            _ => "SELECT full_name FROM people WHERE id = $1",
        }
    }

    pub(crate) fn adds(self) -> &'static str {
        match self.0 {
            1 => "INSERT INTO people (name) VALUES ($1) RETURNING id",
            2 | 3 => "INSERT INTO people (name, full_name) VALUES ($1, $1) RETURNING id",
            _ => "INSERT INTO people (full_name) VALUES ($1) RETURNING id",
        }
    }

    pub(crate) fn renames(self) -> &'static str {
        match self.0 {
            1 => "UPDATE people SET name = $1 WHERE id = $2",
            2 | 3 => "UPDATE people SET name = $1, full_name = $1 WHERE id = $2",
            _ => "UPDATE people SET full_name = $1 WHERE id = $2",
        }
    }
}
