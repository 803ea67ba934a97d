package session

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	gorilla "github.com/gorilla/sessions"
)

// serializer is a redistore.SessionSerializer that keeps the types of values, in a fraction of gob's time,
// which it takes only for what it does not know. It reads what redistore's own serializers wrote.
type serializer struct{}

// compact begins what serializer writes. No stream of gob can: it begins with a length below 0x80.
const compact = 0xB2

// The kinds of values. They are stored: never change one.
const (
	kindNil byte = iota
	kindFalse
	kindTrue
	kindString
	kindBytes
	kindInt
	kindInt64
	kindUint
	kindUint64
	kindFloat64
	kindTime
	kindStrings
	kindList
	kindMap
	kindGob
)

const maxDepth = 32 // of lists and maps in each other

var (
	errCorrupt = errors.New("session: what is stored cannot be read")
	errDeep    = errors.New("session: lists and maps are nested too deep")
)

// Serialize is redistore's.
func (serializer) Serialize(s *gorilla.Session) ([]byte, error) {
	b := append(make([]byte, 0, 256), compact)
	b = binary.AppendUvarint(b, uint64(len(s.Values)))
	var err error
	for k, v := range s.Values {
		if b, err = appendValue(b, k, 0); err == nil {
			b, err = appendValue(b, v, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("session: the value of %v, a %T: %w", k, v, err)
		}
	}
	return b, nil
}

// Deserialize is redistore's.
func (serializer) Deserialize(b []byte, s *gorilla.Session) error {
	switch {
	case len(b) == 0:
		return errCorrupt
	case b[0] == compact:
		d := decoder{rest: string(b[1:])}
		d.into(s.Values)
		return d.err
	case b[0] == '{': // no stream of gob that holds a session begins so
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			return fmt.Errorf("%w: %w", errCorrupt, err)
		}
		for k, v := range m {
			s.Values[k] = v
		}
		return nil
	}
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&s.Values); err != nil {
		return fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return nil
}

func appendText(b []byte, kind byte, text string) []byte {
	b = binary.AppendUvarint(append(b, kind), uint64(len(text)))
	return append(b, text...)
}

func appendValue(b []byte, v any, depth int) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, kindNil), nil
	case bool:
		if v {
			return append(b, kindTrue), nil
		}
		return append(b, kindFalse), nil
	case string:
		return appendText(b, kindString, v), nil
	case int:
		return binary.AppendVarint(append(b, kindInt), int64(v)), nil
	case int64:
		return binary.AppendVarint(append(b, kindInt64), v), nil
	case uint:
		return binary.AppendUvarint(append(b, kindUint), uint64(v)), nil
	case uint64:
		return binary.AppendUvarint(append(b, kindUint64), v), nil
	case float64:
		return binary.LittleEndian.AppendUint64(append(b, kindFloat64), math.Float64bits(v)), nil
	case time.Time:
		text, err := v.MarshalBinary()
		return appendText(b, kindTime, string(text)), err
	}
	return appendMany(b, v, depth)
}

// appendMany appends what is made of other values, or unknown. A nil slice or map comes back as nil.
func appendMany(b []byte, v any, depth int) ([]byte, error) {
	if depth == maxDepth {
		return nil, errDeep
	}
	switch v := v.(type) {
	case []byte:
		if v != nil {
			return appendText(b, kindBytes, string(v)), nil
		}
	case []string:
		if v != nil {
			b = binary.AppendUvarint(append(b, kindStrings), uint64(len(v)))
			for _, s := range v {
				b = appendText(b, kindString, s)
			}
			return b, nil
		}
	case []any:
		if v != nil {
			return appendList(b, v, depth)
		}
	case map[string]any:
		if v != nil {
			return appendMap(b, v, depth)
		}
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(&v); err != nil {
		return nil, err
	}
	return appendText(b, kindGob, buf.String()), nil
}

func appendList(b []byte, v []any, depth int) (_ []byte, err error) {
	b = binary.AppendUvarint(append(b, kindList), uint64(len(v)))
	for i := 0; i < len(v) && err == nil; i++ {
		b, err = appendValue(b, v[i], depth+1)
	}
	return b, err
}

func appendMap(b []byte, v map[string]any, depth int) (_ []byte, err error) {
	b = binary.AppendUvarint(append(b, kindMap), uint64(len(v)))
	for k, e := range v {
		if b, err = appendValue(appendText(b, kindString, k), e, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// A decoder takes values from rest until the first error.
type decoder struct {
	rest string
	err  error
}

func (d *decoder) fail() {
	d.rest, d.err = "", errCorrupt
}

func (d *decoder) take(n uint64) string {
	if n > uint64(len(d.rest)) {
		d.fail()
		return ""
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *decoder) uvarint() (v uint64) {
	for shift := 0; shift < 64; shift += 7 {
		b := d.take(1)
		if b == "" {
			return 0
		}
		v |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return v
		}
	}
	d.fail()
	return 0
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// many is how many elements follow: no more than there are bytes.
func (d *decoder) many() int {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) into(m map[any]any) {
	for range d.many() {
		k := d.value(0)
		v := d.value(0)
		if d.err != nil {
			return
		}
		switch k.(type) {
		case []byte, []string, []any, map[string]any: // which no map has as keys
			d.fail()
			return
		}
		m[k] = v
	}
	if d.rest != "" {
		d.fail()
	}
}

func (d *decoder) value(depth int) any {
	kind := d.take(1)
	if kind == "" || depth > maxDepth {
		d.fail()
		return nil
	}
	switch kind[0] {
	case kindNil:
		return nil
	case kindFalse, kindTrue:
		return kind[0] == kindTrue
	case kindString:
		return d.take(d.uvarint())
	case kindInt:
		return int(d.varint())
	case kindInt64:
		return d.varint()
	case kindUint:
		return uint(d.uvarint())
	case kindUint64:
		return d.uvarint()
	case kindFloat64:
		if bits := d.take(8); bits != "" {
			return math.Float64frombits(binary.LittleEndian.Uint64([]byte(bits)))
		}
		return nil
	}
	return d.larger(kind[0], depth)
}

func (d *decoder) larger(kind byte, depth int) any {
	switch kind {
	case kindBytes:
		return []byte(d.take(d.uvarint()))
	case kindTime:
		var t time.Time
		if err := t.UnmarshalBinary([]byte(d.take(d.uvarint()))); err != nil {
			d.fail()
		}
		return t
	case kindStrings:
		list := make([]string, d.many())
		for i := range list {
			list[i], _ = d.value(depth + 1).(string)
		}
		return list
	case kindList:
		list := make([]any, d.many())
		for i := range list {
			list[i] = d.value(depth + 1)
		}
		return list
	case kindMap:
		n := d.many()
		m := make(map[string]any, n)
		for range n {
			k, _ := d.value(depth + 1).(string)
			m[k] = d.value(depth + 1)
		}
		return m
	case kindGob:
		var v any
		text := d.take(d.uvarint())
		if err := gob.NewDecoder(bytes.NewReader([]byte(text))).Decode(&v); err != nil {
			d.rest, d.err = "", fmt.Errorf("%w: %w", errCorrupt, err)
		}
		return v
	}
	d.fail()
	return nil
}
