//! Clients of the examples that speak lines of text.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::load::Client;

/// Sends lines over one connection, and takes another one when it is asked to leave.
pub(crate) struct Echo {
    address: SocketAddr,
    open: Option<BufReader<TcpStream>>,
    farewells: Arc<AtomicUsize>,
}

impl Echo {
    pub(crate) fn new(address: SocketAddr, farewells: &Arc<AtomicUsize>) -> Self {
        Self {
            address,
            open: None,
            farewells: Arc::clone(farewells),
        }
    }

    async fn exchange(&mut self) -> io::Result<String> {
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => BufReader::new(TcpStream::connect(self.address).await?),
        };
        stream.write_all(b"over and out\n").await?;
        let mut is_last = false;
        loop {
            let line = read_line(&mut stream).await?;
            if line.starts_with("please leave within 30.0 s")
                || line.starts_with("please leave within 29.")
            {
                self.farewells.fetch_add(1, Ordering::SeqCst);
                is_last = true;
                continue;
            }
            if !is_last {
                self.open = Some(stream);
            }
            return match line.starts_with("over and out from generation ") {
                true => Ok(line),
                false => Err(io::Error::other(format!("not an echo: {line:?}"))),
            };
        }
    }
}

impl Client for Echo {
    async fn ask(&mut self) -> Result<String, String> {
        self.exchange().await.map_err(|error| error.to_string())
    }
}

/// Connects, and reads the one line that comes.
pub(crate) struct Buyer(pub(crate) SocketAddr);

impl Client for Buyer {
    async fn ask(&mut self) -> Result<String, String> {
        let bought = async {
            let mut stream = TcpStream::connect(self.0).await?;
            let mut line = String::new();
            stream.read_to_string(&mut line).await?;
            io::Result::Ok(line)
        };
        match bought.await {
            Ok(line) if line.ends_with('\n') => Ok(line.trim_end().to_owned()),
            Ok(line) => Err(format!("not a whole line: {line:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}
