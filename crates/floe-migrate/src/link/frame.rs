//! Frames: what both ends of a connection, and floe's own processes among each other, send. One byte of kind, four of
//! length (little-endian), the body. Nothing is allocated before its length is known to be allowed.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// Bytes of a frame's head.
const HEAD: usize = 5;
/// Bytes of a message at most.
pub const MESSAGE: usize = 1 << 20;
/// Bytes of a piece of an image at most.
pub const DATA: usize = 1 << 18;

const KIND_MESSAGE: u8 = b'm';
const KIND_DATA: u8 = b'd';
const KIND_PIECE: u8 = b'p';
const KIND_ALIVE: u8 = b'a';

/// Where a piece of an image belongs that comes by one of several connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which image, of those that come so, from 0 on.
    pub image: u32,
    /// Where in it, in bytes.
    pub offset: u64,
}

/// Bytes of a [`Place`].
const PLACE: usize = 12;

/// What came.
#[derive(Debug)]
pub enum Frame<M> {
    /// A message.
    Message(M),
    /// A piece of an image: that many bytes, in the buffer that was given.
    Data(usize),
    /// The same, which belongs there.
    Piece(Place, usize),
    /// A sign of life.
    Alive,
}

/// What is no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ended, between two frames or within one.
    #[error("the connection ended")]
    End,
    /// Something else than floe.
    #[error("the other side does not speak floe's protocol (a frame of kind {0:#04x})")]
    Kind(u8),
    /// Too long a frame.
    #[error("the other side sent a frame of {0} bytes, which is too long")]
    Length(usize),
    /// Not a message.
    #[error("the other side sent a message that this floe does not know")]
    Message(#[from] serde_json::Error),
}

/// Sends a message.
pub fn send<M: Serialize>(to: &mut impl Write, message: &M) -> Result<(), FrameError> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE {
        return Err(FrameError::Length(body.len()));
    }
    put(to, KIND_MESSAGE, &[&body])
}

/// Sends a piece of an image.
pub fn send_data(to: &mut impl Write, piece: &[u8]) -> Result<(), FrameError> {
    put(to, KIND_DATA, &[piece])
}

/// Sends a piece of an image that belongs there.
pub fn send_piece(to: &mut impl Write, place: Place, piece: &[u8]) -> Result<(), FrameError> {
    let Place { image, offset } = place;
    put(to, KIND_PIECE, &[&image.to_le_bytes(), &offset.to_le_bytes(), piece])
}

/// Sends a sign of life.
pub fn send_alive(to: &mut impl Write) -> Result<(), FrameError> {
    put(to, KIND_ALIVE, &[])
}

fn put(to: &mut impl Write, kind: u8, parts: &[&[u8]]) -> Result<(), FrameError> {
    let bytes = parts.iter().map(|part| part.len()).sum();
    let mut head = [kind; HEAD];
    let length = u32::try_from(bytes).map_err(|_| FrameError::Length(bytes))?;
    head[1..].copy_from_slice(&length.to_le_bytes());
    match parts.split_last() {
        // What is long is not copied once more.
        Some((last, parts)) if bytes >= DATA / 8 => {
            to.write_all(&[&head[..], &parts.concat()].concat())?;
            to.write_all(last)?;
        }
        _ => to.write_all(&[&head[..], &parts.concat()].concat())?,
    }
    Ok(to.flush()?)
}

/// Receives a frame; what is no message goes into `buffer`, which has room for [`DATA`] bytes.
pub fn receive<M: DeserializeOwned>(from: &mut impl Read, buffer: &mut [u8]) -> Result<Frame<M>, FrameError> {
    let mut head = [0; HEAD];
    exact(from, &mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    match kind {
        KIND_MESSAGE if length <= MESSAGE => {
            let mut body = vec![0; length];
            exact(from, &mut body)?;
            Ok(Frame::Message(serde_json::from_slice(&body)?))
        }
        KIND_DATA if length <= buffer.len() => {
            exact(from, &mut buffer[..length])?;
            Ok(Frame::Data(length))
        }
        KIND_PIECE if (PLACE..=PLACE + buffer.len()).contains(&length) => {
            let (mut image, mut offset) = ([0; 4], [0; 8]);
            exact(from, &mut image)?;
            exact(from, &mut offset)?;
            let place = Place {
                image: u32::from_le_bytes(image),
                offset: u64::from_le_bytes(offset),
            };
            let length = length - PLACE;
            exact(from, &mut buffer[..length])?;
            Ok(Frame::Piece(place, length))
        }
        KIND_ALIVE if length == 0 => Ok(Frame::Alive),
        KIND_MESSAGE | KIND_DATA | KIND_PIECE | KIND_ALIVE => Err(FrameError::Length(length)),
        other => Err(FrameError::Kind(other)),
    }
}

fn exact(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), FrameError> {
    from.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::End,
        _ => FrameError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::{DATA, Frame, FrameError, MESSAGE, Place, receive, send, send_alive, send_data, send_piece};

    #[test]
    fn what_is_sent_is_received() {
        let mut wire = Vec::new();
        send(&mut wire, &vec!["a", "b"]).expect("sent");
        send_data(&mut wire, &[7; 9]).expect("sent");
        let place = Place {
            image: 3,
            offset: 1 << 40,
        };
        for bytes in [1, DATA] {
            send_piece(&mut wire, place, &vec![9; bytes]).expect("sent");
        }
        send_alive(&mut wire).expect("sent");
        let (mut from, mut buffer) = (wire.as_slice(), vec![0; DATA]);
        let first = receive::<Vec<String>>(&mut from, &mut buffer).expect("a frame");
        assert!(matches!(first, Frame::Message(words) if words == ["a", "b"]));
        let second = receive::<Vec<String>>(&mut from, &mut buffer).expect("a frame");
        assert!(matches!(second, Frame::Data(9)) && buffer[..9] == [7; 9]);
        for bytes in [1, DATA] {
            let piece = receive::<()>(&mut from, &mut buffer).expect("a frame");
            assert!(matches!(piece, Frame::Piece(there, got) if there == place && got == bytes));
            assert_eq!(buffer[..bytes], vec![9; bytes]);
        }
        assert!(matches!(receive::<()>(&mut from, &mut buffer), Ok(Frame::Alive)));
        assert!(matches!(receive::<()>(&mut from, &mut buffer), Err(FrameError::End)));
    }

    #[test]
    fn whatever_comes_there_is_an_answer() {
        let mut buffer = vec![0; DATA];
        let mut state = 1_u64;
        for length in 0..4000_usize {
            let bytes: Vec<u8> = (0..length % 64)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let byte = (state >> 33) as u8;
                    // Mostly what could be a head.
                    [b'm', b'd', b'a', b'p', 0, 0, byte, b'{'][byte as usize % 8]
                })
                .collect();
            drop(receive::<Vec<String>>(&mut bytes.as_slice(), &mut buffer));
        }
        let long = [&[b'm'][..], &(MESSAGE as u32 + 1).to_le_bytes()].concat();
        assert!(matches!(
            receive::<()>(&mut long.as_slice(), &mut buffer),
            Err(FrameError::Length(_))
        ));
        for (kind, length) in [
            (b'd', u32::MAX),
            (b'd', DATA as u32 + 1),
            (b'p', DATA as u32 + 13),
            (b'p', 11),
        ] {
            let wrong = [&[kind][..], &length.to_le_bytes(), &[0; 16]].concat();
            assert!(matches!(
                receive::<()>(&mut wrong.as_slice(), &mut buffer),
                Err(FrameError::Length(_))
            ));
        }
        assert!(matches!(
            receive::<()>(&mut &b"GET / HTTP/1.1"[..], &mut buffer),
            Err(FrameError::Kind(b'G'))
        ));
    }
}
