//! Load and process harness for handover.
