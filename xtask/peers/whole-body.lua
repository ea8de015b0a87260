-- Takes the whole body and sets a field to its length.
function envoy_on_request(handle)
  handle:headers():replace("x-bench", tostring(handle:body():length()))
end
