use super::*;
use crate::nbd::proto::Command;
use proptest::prelude::*;
use std::task::Waker;

/// Takes what it is told to take, then blocks once.
struct Narrow {
    takes: Vec<usize>,
    turn: usize,
    got: Vec<u8>,
}

impl AsyncWrite for Narrow {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.turn += 1;
        let take = self.takes[self.turn % self.takes.len()];
        if take == 0 {
            return Poll::Pending;
        }
        let all: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).take(take).collect();
        assert!(!all.is_empty(), "nothing was offered");
        self.got.extend(&all);
        Poll::Ready(Ok(all.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

proptest! {
    /// However the transport cuts it, what goes out is what was queued, and payload is accounted
    /// for exactly once.
    #[test]
    fn partial_writes_lose_nothing(
        lengths in prop::collection::vec(0usize..3000, 1..200),
        mut takes in prop::collection::vec(0usize..40_000, 1..8),
        shape in prop::sample::select(vec![Replies::Simple, Replies::Structured, Replies::Extended]),
    ) {
        takes.push(5);
        let mut expected = Vec::new();
        let mut queue = Queue::new(shape);
        let mut stream = Narrow { takes, turn: 0, got: Vec::new() };
        let mut cx = Context::from_waker(Waker::noop());
        let (mut asked, mut freed) = (0, 0);
        for (i, length) in lengths.iter().enumerate() {
            let data = Bytes::from(vec![i as u8 | 1; *length]);
            let request = Request {
                flags: 0, command: Command::Read, cookie: i as u64, offset: 9, length: *length as u64,
            };
            let mut alone = Queue::new(shape);
            alone.data(&request, data.clone());
            let mut wide = Narrow { takes: vec![usize::MAX], turn: 0, got: Vec::new() };
            prop_assert!(alone.poll_send(&mut wide, &mut cx).unwrap().1.is_ready());
            expected.extend(wide.got);
            asked += request.length;
            freed += queue.data(&request, data);
            if i % 7 == 0 {
                freed += queue.poll_send(&mut stream, &mut cx).unwrap().0;
            }
        }
        while !queue.is_empty() {
            freed += queue.poll_send(&mut stream, &mut cx).unwrap().0;
        }
        prop_assert_eq!(freed, asked);
        prop_assert_eq!(queue.held(), 0);
        prop_assert!(stream.got == expected);
    }
}

#[test]
fn only_all_zeroes_are_zero() {
    for length in [4096, 4100, 65536] {
        let mut data = vec![0; length];
        assert!(is_zero(&data));
        for at in [0, 63, 64, 255, 256, length - 1] {
            data[at] = 1;
            assert!(!is_zero(&data), "byte {at} of {length}");
            data[at] = 0;
        }
    }
}
