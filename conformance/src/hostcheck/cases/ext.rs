//! Extensions.

use super::prelude::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("ext/ids", 2, &["PXG-EXT-001"], "an extension is found by its name with its revision, and by nothing else")
            .script("a request-headers: get-ext pxg.metrics; get-ext pxg.metrics/; get-ext pxg.metrics/01; get-ext /1")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/")).await?;
                let answers: Vec<_> = x.records.iter().filter(|r| r.function == "get_ext").map(|r| (r.text.clone(), r.status)).collect();
                cx.equal("PXG-EXT-001", "answers", answers.len(), 4);
                for (id, status) in answers {
                    cx.equal("PXG-EXT-001", &format!("get_ext({id:?})"), status, Some(-8));
                }
                Ok(())
            }),
        Case::new("ext/size", 2, &["PXG-EXT-002"], "the table of pxg.metrics/1 begins with its size")
            .script("a request-headers: get-ext pxg.metrics/1")
            .run(|cx| async move {
                let x = cx.exchange(Request::get("/")).await?;
                // What the table says of itself, the probe judges.
                let found: Vec<_> = x.records.iter().filter(|r| r.function == "get_ext").map(|r| r.status).collect();
                cx.check("PXG-EXT-002", found.len() == 1, || format!("{} records of get_ext", found.len()));
                Ok(())
            }),
    ]
}
