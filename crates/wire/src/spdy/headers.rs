//! Names and values at the head of a stream, compressed with the draft's dictionary; one zlib stream a direction and connection.

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{Error, MAX_CONTROL};

/// As many as upstream believes.
const MAX_HEADERS: u32 = 1000;

/// Names in lower case with their values, in the order sent.
pub type Headers = Vec<(String, String)>;

/// The words that the draft's dictionary begins with, each behind its length.
const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,accept-ranges,age,allow,\
    authorization,cache-control,connection,content-base,content-encoding,content-language,content-length,content-location,\
    content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,if-modified-since,if-none-match,\
    if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,proxy-authenticate,proxy-authorization,range,\
    referer,retry-after,server,te,trailer,transfer-encoding,upgrade,user-agent,vary,via,warning,www-authenticate,method,\
    get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,keep-alive,origin";
/// And what it ends with.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 \
    Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, \
    Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
    text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in WORDS.split(',') {
        bytes.put_u32(u32::try_from(word.len()).expect("words are short"));
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

/// Of what this side receives.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of one frame.
    pub(super) fn headers(&mut self, compressed: &[u8]) -> Result<Headers, Error> {
        parse(&self.inflate(compressed)?)
    }

    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let status = self.0.decompress(compressed, &mut piece, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).expect("part of a frame");
            let written = usize::try_from(self.0.total_out() - written).expect("part of a piece");
            compressed = &compressed[read..];
            out.extend_from_slice(&piece[..written]);
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| Error::Compression)?;
                }
                // The stream lasts as long as the connection.
                Err(_) | Ok(Status::StreamEnd) => return Err(Error::Compression),
                Ok(_) if out.len() > MAX_CONTROL => return Err(Error::TooLong(out.len())),
                Ok(_) if read == 0 && written == 0 && !compressed.is_empty() => return Err(Error::Compression),
                Ok(_) if compressed.is_empty() && written < piece.len() => return Ok(out),
                Ok(_) => {}
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, Error> {
    let count = block.try_get_u32().map_err(|_| Error::Headers)?;
    if count > MAX_HEADERS {
        return Err(Error::Headers);
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?;
        let value = text(&mut block)?;
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) || headers.iter().any(|(before, _)| *before == name) {
            return Err(Error::Headers);
        }
        headers.push((name, value));
    }
    if block.is_empty() { Ok(headers) } else { Err(Error::Headers) }
}

fn text(block: &mut &[u8]) -> Result<String, Error> {
    let length = block.try_get_u32().map_err(|_| Error::Headers)?;
    let (text, rest) = block.split_at_checked(length as usize).ok_or(Error::Headers)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Error::Headers)
}

/// Of what this side sends.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&dictionary()).expect("nothing was compressed yet");
        Self(compress)
    }

    pub(super) fn headers(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = Vec::new();
        let length = |length: usize| u32::try_from(length).expect("headers of ours are short");
        block.put_u32(length(headers.len()));
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(length(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut rest = &block[..];
        loop {
            let before = self.0.total_in();
            self.0.compress_vec(rest, &mut out, FlushCompress::Sync).expect("the compressor is in order");
            rest = &rest[usize::try_from(self.0.total_in() - before).expect("part of the block")..];
            if rest.is_empty() && out.len() < out.capacity() {
                return out;
            }
            out.reserve(64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        // zlib's FDICT names the Adler-32 of the dictionary: a client of ours and one of theirs agree on it.
        let compressed = Deflater::new().headers(&Headers::new());
        assert_eq!(compressed[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn a_small_frame_does_not_inflate_without_bound() {
        let mut compress = Compress::new(Compression::best(), true);
        let mut out = Vec::with_capacity(1 << 16);
        compress.compress_vec(&vec![0; 1 << 24], &mut out, FlushCompress::Sync).expect("compressed");
        assert!(out.len() < MAX_CONTROL);
        assert!(matches!(Inflater::new().headers(&out), Err(Error::TooLong(_))));
    }
}
