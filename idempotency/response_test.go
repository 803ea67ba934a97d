package idempotency

import (
	"net/http"
	"reflect"
	"testing"
)

func TestAResponseIsReadAsItWasWritten(t *testing.T) {
	for _, want := range []response{
		{201, http.Header{"Location": {"/7"}, "Vary": {"A", "B"}, "X-Empty": {""}}, []byte("\x00hello")},
		{204, http.Header{}, []byte{}},
	} {
		got, err := decode(string(encode([32]byte{1}, want)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("")
	f.Add("u" + string(make([]byte, 32)))
	f.Add(string(encode([32]byte{1}, response{201, http.Header{"Location": {"/7"}}, []byte("hello")})))
	f.Fuzz(func(t *testing.T, record string) {
		r, err := decode(record)
		if err != nil {
			return
		}
		if again, err := decode(string(encode([32]byte{}, r))); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v, %v; want %+v", again, err, r)
		}
	})
}

func TestHeadersOfOneAnswerAreNotKept(t *testing.T) {
	own := ownHeaders(http.Header{
		"Location": {"/7"}, "Vary": {"Origin", "X"}, "Set-Cookie": {"a=b"}, "Date": {"now"}, "Connection": {"close, X-Hop"}, "X-Hop": {"1"},
		"X-Request-Id": {"1"}, "X-Outer": {"1"}, http.TrailerPrefix + "X": {"1"}, "Transfer-Encoding": {"chunked"},
	}, http.Header{"X-Outer": {"1"}, "Vary": {"Origin"}})
	if want := (http.Header{"Location": {"/7"}, "Vary": {"Origin", "X"}}); !reflect.DeepEqual(own, want) {
		t.Errorf("%v, want %v", own, want)
	}
}
