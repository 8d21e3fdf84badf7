use super::*;
use std::sync::Weak;

/// Takes nothing at first, and tells at once that it would take something now: before who asked has put that down.
struct Fickle {
    link: Weak<Link>,
    said: bool,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl AsyncWrite for Fickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if !std::mem::replace(&mut self.said, true) {
            cx.waker().wake_by_ref();
            // The task hears it, in its own thread, and finds somebody sending.
            let link = self.link.upgrade().unwrap();
            std::thread::spawn(move || link.drive_again()).join().unwrap();
            return Poll::Pending;
        }
        self.taken.lock().extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn room_that_is_told_of_while_somebody_sends_is_used() {
    let link = Arc::new(Link::new(1 << 20));
    let taken = Arc::new(Mutex::new(Vec::new()));
    link.connect(common::socket::Writer::Any(Box::new(Fickle {
        link: Arc::downgrade(&link),
        said: false,
        taken: taken.clone(),
    })));
    assert!(link.request(&Request::Ping, 1));
    link.drive();
    // What comes later goes, too.
    assert!(link.request(&Request::Ping, 2));
    link.drive();
    assert_eq!(taken.lock().len(), 2 * wire::HEAD);
}
