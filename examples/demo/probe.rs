//! One request on a connection of its own, to see who answers next.

use std::io;
use std::net::SocketAddr;

use handover_load::routes::GENERATION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The generation that answers next. A connection that a dying release still accepted is tried again.
pub(crate) async fn next_answer(server: SocketAddr) -> io::Result<u64> {
    loop {
        if let Ok(Some(generation)) = ask(server).await {
            return Ok(generation);
        }
        tokio::task::yield_now().await;
    }
}

async fn ask(server: SocketAddr) -> io::Result<Option<u64>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let field = format!("{GENERATION}: ");
    let value = answer.lines().find_map(|line| line.strip_prefix(&field));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n";
