//! HTTP over our listeners.

#[cfg(feature = "axum")]
mod axum;
