//! The few parts of DNS messages that the agent has to understand.

/// The answer that follows its length (RFC 1035, section 4.2.2); `None` while it is incomplete.
pub(crate) fn complete_answer(received: &[u8]) -> Option<&[u8]> {
    let (length, rest) = received.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

/// Length of a message's header in bytes (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// The answer as a datagram of at most `max_size` bytes. A larger answer is replaced by its header and question with
/// the bits "response" and "truncated", so that the client repeats the query over a connection.
pub(crate) fn fit(max_size: usize, answer: &[u8]) -> Vec<u8> {
    const RESPONSE: u8 = 0x80;
    const TRUNCATED: u8 = 0x02;
    if answer.len() <= max_size {
        return answer.to_vec();
    }
    let mut short = answer[..question_end(answer).unwrap_or(HEADER)].to_vec();
    short[2] |= RESPONSE | TRUNCATED;
    // The counts of answers, authorities and additional records, and of questions if the question is unreadable.
    short[6..HEADER].fill(0);
    if short.len() == HEADER {
        short[4..6].fill(0);
    }
    short
}

/// Maximum size of an answer in bytes: 512, or the size in the query's OPT record (RFC 6891, section 6.2.3).
pub(crate) fn max_size(query: &[u8]) -> usize {
    const WITHOUT_OPT: usize = 512;
    const OPT: [u8; 3] = [0, 0, 41];
    // In a query the OPT record directly follows the question: an empty name, the type, and the size in the class
    // field.
    let record = question_end(query).and_then(|end| query.get(end..)).and_then(|record| record.strip_prefix(&OPT));
    match record.and_then(|record| record.first_chunk::<2>()) {
        Some(size) => usize::from(u16::from_be_bytes(*size)).max(WITHOUT_OPT),
        None => WITHOUT_OPT,
    }
}

/// Maximum length of a name in bytes, with the lengths of its labels (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

/// Offset of the end of a message's only question, which has labels, a terminator, a type and a class.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length @ 1..64 => at += 1 + length,
            // The question holds the first name of the message, so it cannot be compressed.
            _ => return None,
        }
    }
    let end = at + 5;
    (at < HEADER + MAX_NAME && end <= message.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for the address of `name`, followed by `more`.
    fn query(name: &[u8], more: &[u8]) -> Vec<u8> {
        let header = [0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!more.is_empty())];
        [&header, name, &[0, 0, 1, 0, 1], more].concat()
    }

    const NAME: &[u8] = b"\x06server\x04test";

    /// An OPT record with a size of 1,232 bytes.
    const OPT: &[u8] = &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn an_answer_is_complete_at_its_announced_length() {
        assert_eq!(complete_answer(&[0]), None);
        assert_eq!(complete_answer(&[0, 3, 1, 2]), None);
        assert_eq!(complete_answer(&[0, 3, 1, 2, 3]), Some(&[1, 2, 3][..]));
        assert_eq!(complete_answer(&[0, 0]), Some(&[][..]));
    }

    #[test]
    fn the_maximum_size_comes_from_the_opt_record() {
        assert_eq!(max_size(&query(NAME, &[])), 512);
        assert_eq!(max_size(&query(NAME, OPT)), 1232);
        assert_eq!(max_size(&query(NAME, &OPT[..4])), 512);
        assert_eq!(max_size(b"no query"), 512);
        assert_eq!(max_size(&query(&[0xc0, 12], OPT)), 512, "a question is not compressed");
    }

    #[test]
    fn an_answer_that_is_too_large_becomes_a_truncated_one() {
        let query = query(NAME, OPT);
        let mut answer = query.clone();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 70, 0, 0, 0, 1]);
        answer.resize(1232, 7);
        assert_eq!(fit(max_size(&query), &answer), answer);
        answer.push(7);
        let mut expected = query[..query.len() - OPT.len()].to_vec();
        expected[2..12].copy_from_slice(&[0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fit(max_size(&query), &answer), expected);
        // An answer that is not a DNS message.
        let short = fit(max_size(&query), &[0xff; 2000]);
        assert_eq!((short.len(), &short[4..]), (HEADER, &[0; 8][..]));
        // An answer whose question has a longer name than any.
        let name = [&[63], &[b'a'; 63][..]].concat().repeat(12);
        assert_eq!(fit(512, &self::query(&name, &[7; 100])).len(), HEADER);
    }
}
