//! Calls of the machine's programs to the host.

use super::{BadField, Field, MAX_LABEL, Map, number, text};
use crate::calls::CallRequest;
use crate::error::Refusal;

/// Bytes of a reason.
const MAX_REASON: usize = 4_096;

/// The fields of `calls`, `answer` and `refuse`.
pub(super) fn read(operation: &str, map: &Map) -> Field<CallRequest> {
    if operation == "calls" {
        let user = map.optional("user", text)?;
        let is_name = |user: &String| user.len() <= MAX_LABEL && !user.contains('\0');
        return match user {
            Some(user) if !is_name(&user) => Err(BadField("user")),
            user => Ok(CallRequest::Door { user }),
        };
    }
    let call = map.required("call", number)?;
    if operation == "answer" {
        return Ok(CallRequest::Answer { call });
    }
    let message = map.required("message", text)?;
    if message.len() > MAX_REASON {
        return Err(BadField("message"));
    }
    let why = Refusal::new("refused", message);
    Ok(CallRequest::Refuse { call, why })
}
