// Package certs owns a member's certificates: it reads certificate, key, CA and revocation list from their files, makes
// the settings of crypto/tls from them, does handshakes within bounds, and says in plain words why one failed. One Set is
// for clients, one for peers. It listens nowhere and dials nobody: others give it connections.
//
// Invariants, with the tests that attack them:
//
//   - A handshake that begins after a file was replaced sees the new file, and no connection is dropped for it
//     (TestReload). Files are looked at when a handshake begins, never by a timer.
//   - A file that cannot be read, is cut off or does not fit its key changes nothing: what was read before stays, and the
//     log says so once (TestBrokenFilesKeepTheOld, FuzzReload).
//   - Who was verified by files that are replaced is verified anew when it connects again: sessions are not resumed
//     across a reload, and revocation is checked on resumed ones too (TestNoResumptionAcrossReload).
//   - A disk that hangs holds up a handshake for lookPatience, not for ever (TestHungDisk).
//   - One line of the log for each cause and remote host a minute (TestComplaints).
package certs
