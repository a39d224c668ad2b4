//! A tokio program under load until there is a file `stop` in the working directory: connections over a unix socket that
//! echo, messages between tasks, blocking work, timers, signals. It prints what it counted, and ends with 1 if that is
//! not right.

use std::{
    error::Error,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task, time,
};

const CLIENTS: u64 = 8;
const SOCKET: &str = "echo";

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[expect(clippy::print_stdout, reason = "what it counted is for whoever started it")]
#[tokio::main(worker_threads = 3)]
async fn main() -> Outcome<()> {
    let listener = UnixListener::bind(SOCKET)?;
    let idle = TcpListener::bind("127.0.0.1:0").await?;
    task::spawn(serve(listener));
    let signals = Arc::new(AtomicU64::new(0));
    task::spawn(count_signals(Arc::clone(&signals)));
    let ticks = Arc::new(AtomicU64::new(0));
    task::spawn(tick(Arc::clone(&ticks)));
    let (sender, mut results) = mpsc::channel(4);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| task::spawn(client(number, sender.clone())))
        .collect();
    drop(sender);
    std::fs::write("ready", "")?;
    let mut messages = 0_u64;
    let mut sum = 0_u64;
    while let Some(number) = results.recv().await {
        messages += 1;
        sum += number;
    }
    let mut sent = 0;
    let mut own_sum = 0;
    for client in clients {
        let (count, sum) = client.await??;
        sent += count;
        own_sum += sum;
    }
    let right = messages == sent && sum == own_sum && messages > 100;
    let alive = ticks.load(Ordering::Relaxed) > 10 && signals.load(Ordering::Relaxed) > 0;
    let port_is_kept = idle.local_addr()?.port() != 0;
    println!("whole {right}, timers and signals {alive}, port {port_is_kept}");
    std::process::exit(i32::from(!(right && alive && port_is_kept)));
}

async fn serve(listener: UnixListener) -> Outcome<()> {
    loop {
        let (mut connection, _) = listener.accept().await?;
        task::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(got @ 1..) = connection.read(&mut bytes).await {
                if connection.write_all(&bytes[..got]).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Sends and gets back until it is told to stop; how many messages, and their sum.
async fn client(number: u64, sender: mpsc::Sender<u64>) -> Outcome<(u64, u64)> {
    let mut connection = UnixStream::connect(SOCKET).await?;
    let (mut count, mut sum) = (0, 0);
    while !Path::new("stop").exists() {
        let value = number * 1_000_003 + count;
        let message = value.to_le_bytes().repeat(300);
        connection.write_all(&message).await?;
        let mut back = vec![0; message.len()];
        connection.read_exact(&mut back).await?;
        let checked = task::spawn_blocking(move || back == message).await?;
        if !checked {
            return Err("an echo differs".into());
        }
        sender.send(value).await?;
        count += 1;
        sum += value;
    }
    Ok((count, sum))
}

async fn count_signals(count: Arc<AtomicU64>) -> Outcome<()> {
    let mut signals = signal(SignalKind::user_defined1())?;
    while signals.recv().await.is_some() {
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn tick(count: Arc<AtomicU64>) {
    let mut interval = time::interval(Duration::from_millis(5));
    loop {
        interval.tick().await;
        count.fetch_add(1, Ordering::Relaxed);
    }
}
