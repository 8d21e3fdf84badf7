//! One connection for the attachments of many clients, for who forwards.
